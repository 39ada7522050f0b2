"""``python -m lora``, where the command's own script is not on the path."""

import sys

from lora.cli import main

if __name__ == "__main__":
    sys.exit(main())
