// node ws: /sub subscribes, what comes from anybody else goes to all who did. Compression is off, as it is by default.
"use strict";

const { WebSocketServer } = require(process.argv[2]);
const subscribers = new Set();

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false }, () =>
  console.log(server.address().port),
);

server.on("connection", (socket, request) => {
  socket.on("error", () => socket.terminate());
  if (request.url === "/sub") {
    subscribers.add(socket);
    socket.on("close", () => subscribers.delete(socket));
    return;
  }
  socket.on("message", (data, binary) => {
    for (const subscriber of subscribers) subscriber.send(data, { binary });
  });
});
