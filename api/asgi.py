"""The application object that gunicorn serves."""

from api import web_directory
from api.app import create_app
from api.realtime.socketio.mount import Application
from integrations.logging import to_stderr
from settings import Settings

to_stderr()
app = Application(create_app(Settings.from_env()), directory=web_directory.path)
