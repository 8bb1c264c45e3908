"""The application object that gunicorn serves."""

from api.app import create_app
from integrations.logging import to_stderr
from settings import Settings

to_stderr()
app = create_app(Settings.from_env())
