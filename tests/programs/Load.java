// Threads, timers and garbage until there is a file `stop`; then a connection to the port that it has listened at all
// the time. Ends with another status than 0 if a sum is wrong.

import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

public class Load {
    public static void main(String[] arguments) throws Exception {
        var pool = Executors.newFixedThreadPool(6);
        var timer = Executors.newScheduledThreadPool(2);
        var ticks = new AtomicLong();
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 0, 5, TimeUnit.MILLISECONDS);
        var server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        Files.writeString(Path.of("ready"), "");
        long rounds = 0;
        long first = 0;
        // However little it was let run until then.
        while (!Files.exists(Path.of("stop")) || rounds <= 10 || ticks.get() <= 10) {
            var results = new ArrayList<Future<Long>>();
            for (int number = 0; number < 50; number++) {
                results.add(pool.submit(work(number)));
            }
            long sum = 0;
            for (var result : results) {
                sum += result.get();
            }
            first = rounds == 0 ? sum : first;
            if (sum != first) {
                System.out.println("round " + rounds + " differs");
                System.exit(3);
            }
            rounds++;
        }
        try (var client = new Socket(server.getInetAddress(), server.getLocalPort()); var accepted = server.accept()) {
            client.getOutputStream().write(7);
            System.out.println("connected " + (accepted.getInputStream().read() == 7));
        }
        pool.shutdown();
        timer.shutdown();
        System.out.println("whole " + (rounds > 10 && ticks.get() > 10));
    }

    static Callable<Long> work(int seed) {
        return () -> {
            long sum = 0;
            var garbage = new byte[200][];
            for (int step = 0; step < 20_000; step++) {
                garbage[step % 200] = new byte[64];
                sum += (step * 31L + seed) % 97;
            }
            return sum;
        };
    }
}
