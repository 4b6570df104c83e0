import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** Prints its port and answers each request with the path that was asked for. */
public class Server {
    public static void main(String[] args) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            try (exchange) {
                byte[] path = exchange.getRequestURI().toString().getBytes();
                exchange.sendResponseHeaders(200, path.length);
                exchange.getResponseBody().write(path);
            }
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }
}
