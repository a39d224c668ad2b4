// Goroutines, channels, timers, signals, garbage, and connections over a unix socket, until there is a file `stop`.

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var stopping atomic.Bool

func main() {
	listener, err := net.Listen("unix", "echo")
	check(err)
	go serve(listener)
	var ticks, signals atomic.Int64
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	caught := make(chan os.Signal, 8)
	signal.Notify(caught, syscall.SIGUSR1)
	go func() {
		for range caught {
			signals.Add(1)
		}
	}()
	results := make(chan int, 4)
	var clients sync.WaitGroup
	var sent atomic.Int64
	for number := 0; number < 6; number++ {
		clients.Add(1)
		go func(number int) {
			defer clients.Done()
			client(number, results, &sent)
		}(number)
	}
	check(os.WriteFile("ready", nil, 0o644))
	go func() {
		for !stopping.Load() {
			_, err := os.Stat("stop")
			stopping.Store(err == nil)
			time.Sleep(5 * time.Millisecond)
		}
		clients.Wait()
		close(results)
	}()
	sum := 0
	for value := range results {
		sum += value
	}
	whole := int64(sum) == sent.Load() && sum > 0
	fmt.Println("whole", whole, ticks.Load() > 10, signals.Load() > 0)
}

func serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		check(err)
		go func() {
			lines := bufio.NewScanner(connection)
			for lines.Scan() {
				fmt.Fprintln(connection, lines.Text())
			}
		}()
	}
}

func client(number int, results chan<- int, sent *atomic.Int64) {
	connection, err := net.Dial("unix", "echo")
	check(err)
	answers := bufio.NewScanner(connection)
	for count := 0; !stopping.Load(); count++ {
		line := fmt.Sprint("client ", number, " message ", count, " ", make([]byte, count%500))
		fmt.Fprintln(connection, line)
		if !answers.Scan() || answers.Text() != line {
			panic("an echo differs")
		}
		sent.Add(1)
		results <- 1
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
