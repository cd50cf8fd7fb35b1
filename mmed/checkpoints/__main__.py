"""`python -m mmed.checkpoints inspect|export|merge|extend`: the commands of mmed/checkpoints/commands.py."""
from mmed.checkpoints.commands import main
from mmed.utils.errors import main_guard

if __name__ == "__main__":
    main_guard(main)
