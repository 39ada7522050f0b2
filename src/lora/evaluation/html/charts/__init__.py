"""Charts as SVG: pure functions from numbers to markup. Colours are classes; the page's style sheet says what they are."""
