"""Charts as SVG: pure functions from numbers to markup. Colours are classes of the style sheet."""
