"""The application object that gunicorn serves."""

from api import web_directory
from api.app import create_app
from api.realtime.socketio.mount import Application
from integrations.logging import to_stderr
from settings import Settings
from storage import cause

settings = Settings.from_env()
to_stderr(form=settings.log_format, level=settings.log_level, about=cause.for_log)
app = Application(create_app(settings), directory=web_directory.path)
