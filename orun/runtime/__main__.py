"""``python -m orun.runtime OPTIONS``: what the guard starts. OPTIONS is one JSON document (see ``launch``)."""

from orun.runtime import early

first_forkserver = early.start()  # before the imports of main, which take as long as its own

from orun.runtime.main import main  # noqa: E402

main(first_forkserver)
