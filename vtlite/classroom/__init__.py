"""The classroom: `python -m vtlite classroom release` makes the exercises, `... grade FOLDER` marks
what came back."""
