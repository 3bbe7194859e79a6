/* The parts that the plain C limits share; raw.h is the story. */
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

_Noreturn void raw_die(const char *what)
{
	fprintf(stderr, "raw: %s: %s\n", what, errno ? strerror(errno) : "failed");
	exit(1);
}

static bool value_of(const char *argument, const char *name, const char **value)
{
	size_t length = strlen(name);
	if (strncmp(argument, name, length) != 0 || argument[length] != '=')
		return false;
	*value = argument + length + 1;
	return true;
}

static uint64_t number(const char *text)
{
	char *end = NULL;
	errno = 0;
	uint64_t value = strtoull(text, &end, 10);
	if (errno || end == text || *end)
		raw_die(text);
	return value;
}

static double real(const char *text)
{
	char *end = NULL;
	double value = strtod(text, &end);
	if (end == text || *end)
		raw_die(text);
	return value;
}

static void parse_one(const char *argument, struct raw_options *options)
{
	const char *value = NULL;
	if (value_of(argument, "file", &value))
		options->file = value;
	else if (value_of(argument, "mode", &value))
		options->mode = value;
	else if (value_of(argument, "congestion", &value))
		options->congestion = value;
	else if (value_of(argument, "seconds", &value))
		options->seconds = real(value);
	else if (value_of(argument, "range_bytes", &value))
		options->range_bytes = number(value);
	else if (value_of(argument, "window", &value))
		options->window = number(value);
	else if (value_of(argument, "dest_bytes", &value))
		options->dest_bytes = number(value);
	else if (value_of(argument, "receive_buffer_bytes", &value))
		options->receive_buffer_bytes = (int)number(value);
	else if (value_of(argument, "client_cpu", &value))
		options->client_cpu = (int)number(value);
	else if (value_of(argument, "server_cpu", &value))
		options->server_cpu = (int)number(value);
	else if (value_of(argument, "check", &value))
		options->check = number(value);
	else if (value_of(argument, "seed", &value))
		options->seed = number(value);
	else
		raw_die(argument);
}

void raw_parse(int argc, char **argv, struct raw_options *options)
{
	for (int i = 1; i < argc; i++)
		parse_one(argv[i], options);
	if (!options->mode || !options->range_bytes || !options->window || options->seconds <= 0 ||
	    options->dest_bytes < options->range_bytes * options->window)
		raw_die("mode, range_bytes, window, seconds and a destination for the window are needed");
}

double raw_now(void)
{
	return raw_cpu_seconds(CLOCK_MONOTONIC);
}

double raw_cpu_seconds(clockid_t clock)
{
	struct timespec t;
	if (clock_gettime(clock, &t))
		raw_die("clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

clockid_t raw_process_clock(pid_t pid)
{
	clockid_t clock;
	errno = clock_getcpuclockid(pid, &clock);
	if (errno)
		raw_die("clock_getcpuclockid");
	return clock;
}

void raw_pin(int cpu)
{
	if (cpu < 0)
		return;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		raw_die("sched_setaffinity");
}

/* xorshift64*: enough to scatter offsets, and the same everywhere. */
uint64_t raw_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545F4914F6CDD1DULL;
}

void raw_open(const char *path, struct raw_file *file)
{
	struct stat facts;
	if (!path)
		raw_die("file= is needed");
	file->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (file->fd < 0 || fstat(file->fd, &facts))
		raw_die(path);
	file->bytes = (size_t)facts.st_size;
	void *map = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, file->fd, 0);
	if (map == MAP_FAILED)
		raw_die("mmap");
	file->map = map;
}

uint8_t *raw_memory(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		raw_die("mmap");
	memset(memory, 1, bytes);
	return memory;
}

/* Set before connect and listen, since the window scale is agreed on in the first packets. */
static int tcp_socket(const struct raw_options *options)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	if (fd < 0)
		raw_die("socket");
	const char *congestion = options->congestion ? options->congestion : "cubic";
	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)))
		raw_die(congestion);
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		raw_die("TCP_NODELAY");
	return fd;
}

static _Noreturn void
serve_one(int listener, const struct raw_options *options, const struct raw_file *file,
          void (*serve)(int, const struct raw_options *, const struct raw_file *))
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	raw_pin(options->server_cpu);
	int fd = accept(listener, NULL, NULL), one = 1;
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		raw_die("accept");
	serve(fd, options, file);
	_exit(0);
}

int raw_pair(const struct raw_options *options, const struct raw_file *file,
             void (*serve)(int, const struct raw_options *, const struct raw_file *), pid_t *server)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	int listener = tcp_socket(options);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		raw_die("listen");
	*server = fork();
	if (*server < 0)
		raw_die("fork");
	if (*server == 0)
		serve_one(listener, options, file, serve);
	close(listener);
	int fd = tcp_socket(options), bytes = options->receive_buffer_bytes;
	if (bytes && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes))
		raw_die("SO_RCVBUF");
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		raw_die("connect");
	raw_pin(options->client_cpu);
	return fd;
}

void raw_reap(int fd, pid_t server)
{
	int status = 0;
	close(fd);
	if (waitpid(server, &status, 0) != server || status)
		raw_die("the serving child failed");
}

void raw_send(int fd, const void *data, size_t bytes, int flags)
{
	const char *next = data;
	while (bytes) {
		ssize_t sent = send(fd, next, bytes, flags | MSG_NOSIGNAL);
		if (sent <= 0)
			raw_die("send");
		next += sent;
		bytes -= (size_t)sent;
	}
}

bool raw_recv_or_end(int fd, void *data, size_t bytes)
{
	char *next = data;
	size_t left = bytes;
	while (left) {
		ssize_t received = recv(fd, next, left, MSG_WAITALL);
		if (received == 0 && left == bytes)
			return false;
		if (received <= 0)
			raw_die("recv");
		next += received;
		left -= (size_t)received;
	}
	return true;
}

void raw_recv(int fd, void *data, size_t bytes)
{
	if (!raw_recv_or_end(fd, data, bytes))
		raw_die("the peer closed the connection");
}

void raw_print(const struct raw_result *result, const char *more)
{
	printf("{\"seconds\": %.6f, \"bytes\": %llu, \"operations\": %llu, \"client_cpu_s\": %.6f, "
	       "\"server_cpu_s\": %.6f, \"checked\": %zu%s}\n",
	       result->seconds, (unsigned long long)result->bytes,
	       (unsigned long long)result->operations, result->client_cpu_s, result->server_cpu_s,
	       result->checked, more);
}
