"""``python -m orun.runtime OPTIONS``: what the guard starts. OPTIONS is one JSON document (see ``launch``)."""

from orun.runtime.main import main

main()
