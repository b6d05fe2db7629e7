// bun (uWebSockets), by its own publish and subscribe: /sub subscribes, what comes from anybody else is published.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    const subscriber = new URL(request.url).pathname === "/sub";
    return server.upgrade(request, { data: { subscriber } }) ? undefined : new Response("no upgrade", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      if (socket.data.subscriber) socket.subscribe("bench");
    },
    message(socket, message) {
      server.publish("bench", message);
    },
  },
});
console.log(server.port);
