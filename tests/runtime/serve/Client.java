import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/** Sends a file as an inference request with Java's own client, which offers h2c, and prints status, version, body. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // HTTP/2 is what it prefers
        for (int i = 0; i < 2; i++) { // and once more on the same connection
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Inference-Header-Content-Length", "0")
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1])))
                .build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body().length());
        }
    }
}
