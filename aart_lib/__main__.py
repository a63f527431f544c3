"""``python -m aart_lib``: the command line."""

import sys

from aart_lib.cli.parser import main

sys.exit(main())
