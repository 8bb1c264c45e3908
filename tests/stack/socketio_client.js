// The stock client of Socket.IO, driven over stdin and stdout, one JSON value a line.
// in:  {"open": name, "namespace": "/", "options": {...}}  {"emit": name, "event": e, "args": [...]}  {"close": name}
// out: {"client": name, "event": e, "data": ...}; beside what the server sends: connect, disconnect, connect_error, ack
const { io } = require("socket.io-client");
const readline = require("readline");
const url = process.argv[2];
const sockets = {};
const say = (client, event, data) => process.stdout.write(JSON.stringify({ client, event, data }) + "\n");

function open(name, namespace, options) {
  const socket = (sockets[name] = io(url + namespace, { forceNew: true, reconnectionDelay: 100, ...options }));
  socket.on("connect", () => say(name, "connect", { by: socket.io.engine.transport.name, session: socket.io.engine.id }));
  socket.on("disconnect", (reason) => say(name, "disconnect", reason));
  socket.on("connect_error", (error) => say(name, "connect_error", { message: error.message, data: error.data }));
  socket.onAny((event, data) => say(name, event, data));
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const asked = JSON.parse(line);
  if (asked.open) open(asked.open, asked.namespace, asked.options);
  if (asked.emit) sockets[asked.emit].emit(asked.event, ...asked.args, (said) => say(asked.emit, "ack", said));
  if (asked.close) sockets[asked.close].close();
}).on("close", () => process.exit(0));
