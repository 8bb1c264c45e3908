"""Socket.IO at /socket.io, for the clients of Cuby's API page."""
