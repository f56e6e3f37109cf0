// An HTTP server as people write them for Node, with its manners: it answers early, closes idle connections soon,
// sends interim responses and trailers. Says on which port it listens.
'use strict';
const http = require('http');

const server = http.createServer((request, response) => {
  if (request.url === '/early') {
    // The body is not read, and the connection is given up once the answer is out.
    response.writeHead(413, { Connection: 'close' });
    response.end('too much', () => request.socket.destroySoon());
    return;
  }
  if (request.url === '/hints') {
    response.writeEarlyHints({ link: '</style.css>; rel=preload' });
  }
  if (request.url === '/destroy') {
    response.write('half', () => request.socket.destroy());
    return;
  }
  const body = [];
  request.on('data', (piece) => body.push(piece));
  request.on('end', () => {
    response.writeHead(200, { Trailer: 'X-Length', 'Transfer-Encoding': 'chunked' });
    response.write(`${request.method} ${request.url}\n`);
    response.write(Buffer.concat(body));
    response.addTrailers({ 'X-Length': Buffer.concat(body).length, 'X-Got': request.trailers['x-sum'] || 'none' });
    response.end();
  });
});
server.keepAliveTimeout = Number(process.argv[2]);
server.on('upgrade', (request, socket, head) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
  socket.write(head);
  socket.pipe(socket);
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
