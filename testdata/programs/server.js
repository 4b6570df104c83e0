// Prints its port and answers each request with the path that was asked for.
const server = require('http').createServer((request, response) => response.end(request.url));
server.keepAliveTimeout = 0;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
