"""`python -m cli`: the `hostler` command where Hostler is not installed, as in a slug of Heroku's."""

import sys

from cli.main import main

sys.exit(main())
