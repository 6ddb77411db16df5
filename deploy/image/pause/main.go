// Command pause does nothing until it is told to end. A container that runs it holds a network namespace and its
// published ports, while the containers that serve in that network come and go.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// As process 1 it inherits the orphans of its container. With SIGCHLD ignored the kernel reaps them.
	signal.Ignore(syscall.SIGCHLD)
	// Process 1 has no default action for signals: without a handler "docker stop" would wait, and kill.
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}
