"""`python -m mmed.reporting`: the command of mmed/reporting/report.py."""
from mmed.reporting.report import main
from mmed.utils.errors import main_guard

if __name__ == "__main__":
    main_guard(main)
