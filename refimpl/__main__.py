from refimpl.cli import run

run()
