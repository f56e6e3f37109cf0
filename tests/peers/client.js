// An HTTP client as people write them for Node: `client.js PORT` ends with 0 when every answer was right.
'use strict';
const assert = require('assert');
const http = require('http');

const port = Number(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function ask(options, send) {
  return new Promise((resolve, reject) => {
    const seen = { hints: [] };
    const request = http.request({ port, host: '127.0.0.1', agent, ...options }, (response) => {
      const body = [];
      response.on('data', (piece) => body.push(piece));
      response.on('error', reject);
      response.on('end', () => resolve({ ...seen, response, text: Buffer.concat(body).toString() }));
    });
    request.on('information', (hint) => seen.hints.push([hint.statusCode, hint.headers.link]));
    request.on('continue', () => { seen.continued = true; request.end('later'); });
    request.on('error', reject);
    send(request);
  });
}

(async () => {
  for (let number = 0; number < 50; number += 1) {
    const { response, text } = await ask({ method: 'PUT', path: `/${number}` }, (request) => {
      // Without a length Node sends chunks.
      request.setHeader('Trailer', 'X-Sum');
      request.write('one ');
      request.write('two');
      request.addTrailers({ 'X-Sum': '7' });
      request.end();
    });
    assert.strictEqual(text, `PUT /${number}\none two`);
    assert.deepStrictEqual({ ...response.trailers }, { 'x-length': '7', 'x-got': '7' });
  }
  const hinted = await ask({ path: '/hints' }, (request) => request.end());
  assert.deepStrictEqual(hinted.hints, [[103, '</style.css>; rel=preload']]);
  const expecting = { method: 'POST', path: '/expect', headers: { Expect: '100-continue', 'Content-Length': 5 } };
  const expected = await ask(expecting, () => {});
  assert.ok(expected.continued);
  assert.strictEqual(expected.text, 'POST /expect\nlater');
  // A body that stops in the middle is an error, never an end.
  await assert.rejects(ask({ path: '/destroy' }, (request) => request.end()));
  const big = await ask({ method: 'POST', path: '/early' }, (request) => {
    request.on('error', () => {});
    request.end(Buffer.alloc(30_000_000));
  });
  assert.deepStrictEqual([big.response.statusCode, big.text], [413, 'too much']);
  await new Promise((resolve, reject) => {
    const request = http.request({ port, host: '127.0.0.1', headers: { Connection: 'Upgrade', Upgrade: 'echo' } });
    request.on('upgrade', (response, socket) => {
      let got = '';
      socket.on('data', (piece) => { got += piece; });
      socket.on('end', () => (got === 'through the tunnel' ? resolve() : reject(new Error(got))));
      socket.end('through the tunnel');
    });
    request.on('error', reject);
    request.end();
  });
  agent.destroy();
})().catch((error) => { console.error(error); process.exit(1); });
