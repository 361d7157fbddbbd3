"""`python -m fedprompt`: the command line."""

from fedprompt.cli.main import main

main()
