// A server of HTTP/2 over TLS as people write them for Node: `h2_server.js PEM` says on which port it listens.
'use strict';
const fs = require('fs');
const http2 = require('http2');

const pem = fs.readFileSync(process.argv[2]);
const server = http2.createSecureServer({ cert: pem, key: pem }, (request, response) => {
  const { stream } = request;
  if (request.url === '/hints') {
    stream.additionalHeaders({ ':status': 103, link: '</style.css>; rel=preload' });
  }
  if (request.url === '/early') {
    // The body is not read; what is left of it is not wanted (RFC 9113 section 8.1).
    response.writeHead(413);
    response.end('too much', () => stream.close(http2.constants.NGHTTP2_NO_ERROR));
    return;
  }
  if (request.url === '/reset') {
    response.write('half', () => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR));
    return;
  }
  if (request.url === '/leave') {
    // This request is answered, and the connection takes no other.
    stream.session.close();
  }
  const body = [];
  request.on('data', (piece) => body.push(piece));
  request.on('end', () => {
    const whole = Buffer.concat(body);
    response.setHeader('x-version', request.httpVersion);
    response.setHeader('x-scheme', request.scheme);
    response.write(`${request.method} ${request.url}\n`);
    response.write(whole);
    response.addTrailers({ 'x-length': whole.length, 'x-got': request.trailers['x-sum'] || 'none' });
    response.end();
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
