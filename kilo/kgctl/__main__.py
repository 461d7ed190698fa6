"""``python -m kilo.kgctl``."""

import sys

from kilo.kgctl import main

sys.exit(main())
