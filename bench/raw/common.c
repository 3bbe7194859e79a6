/* The parts that the plain C limits share; raw.h is the story. */
#include "raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
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

enum kind { KIND_TEXT, KIND_REAL, KIND_SIZE, KIND_INT, KIND_U32 };
_Static_assert(sizeof(size_t) == sizeof(uint64_t), "sizes are 64 bits wide");

static void store(void *place, enum kind kind, const char *value)
{
	if (kind == KIND_TEXT)
		*(const char **)place = value;
	else if (kind == KIND_REAL)
		*(double *)place = real(value);
	else if (kind == KIND_SIZE)
		*(uint64_t *)place = number(value);
	else if (kind == KIND_INT)
		*(int *)place = (int)number(value);
	else
		*(uint32_t *)place = (uint32_t)number(value);
}

static void parse_one(const char *argument, struct raw_options *options)
{
	const struct {
		const char *name;
		enum kind kind;
		void *place;
	} known[] = {
		{"file", KIND_TEXT, &options->file},
		{"mode", KIND_TEXT, &options->mode},
		{"congestion", KIND_TEXT, &options->congestion},
		{"seconds", KIND_REAL, &options->seconds},
		{"range_bytes", KIND_SIZE, &options->range_bytes},
		{"window", KIND_SIZE, &options->window},
		{"call", KIND_SIZE, &options->call},
		{"dest_bytes", KIND_SIZE, &options->dest_bytes},
		{"receive_buffer_bytes", KIND_INT, &options->receive_buffer_bytes},
		{"client_cpu", KIND_INT, &options->client_cpu},
		{"server_cpu", KIND_INT, &options->server_cpu},
		{"check", KIND_SIZE, &options->check},
		{"seed", KIND_SIZE, &options->seed},
		{"connections", KIND_SIZE, &options->connections},
		{"warm_seconds", KIND_REAL, &options->warm_seconds},
		{"host", KIND_TEXT, &options->host},
		{"server_netns", KIND_TEXT, &options->server_netns},
		{"client_netns", KIND_TEXT, &options->client_netns},
		{"latencies", KIND_TEXT, &options->latencies},
		{"fds", KIND_TEXT, &options->fds},
		{"server_pid", KIND_SIZE, &options->server_pid},
		{"blob", KIND_SIZE, &options->blob},
		{"target", KIND_U32, &options->target},
		{"chunk_bytes", KIND_SIZE, &options->chunk_bytes},
	};
	const char *value = NULL;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (value_of(argument, known[i].name, &value)) {
			store(known[i].place, known[i].kind, value);
			return;
		}
	raw_die(argument);
}

void raw_parse(int argc, char **argv, struct raw_options *options)
{
	options->connections = 1;
	for (int i = 1; i < argc; i++)
		parse_one(argv[i], options);
	if (!options->mode || !options->range_bytes || !options->window || options->seconds <= 0 ||
	    !options->connections ||
	    options->dest_bytes / options->connections < options->range_bytes * options->window)
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
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		raw_die("mmap");
	madvise(memory, bytes, MADV_HUGEPAGE); /* as NumPy does with its arrays; a wish */
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

void raw_enter(const char *netns)
{
	if (!netns)
		return;
	int fd = open(netns, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		raw_die(netns);
	close(fd);
}

int raw_listen(const struct raw_options *options)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (options->host && inet_pton(AF_INET, options->host, &address.sin_addr) != 1)
		raw_die(options->host);
	int listener = tcp_socket(options);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, SOMAXCONN))
		raw_die("listen");
	return listener;
}

int raw_connect(const struct raw_options *options, int listener)
{
	struct sockaddr_in address;
	socklen_t length = sizeof address;
	int fd = tcp_socket(options), bytes = options->receive_buffer_bytes;
	if (bytes && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes))
		raw_die("SO_RCVBUF");
	if (getsockname(listener, (struct sockaddr *)&address, &length) ||
	    connect(fd, (struct sockaddr *)&address, sizeof address))
		raw_die("connect");
	return fd;
}

/* What a serving thread is about. */
struct serving {
	pthread_t thread;
	int fd;
	const struct raw_options *options;
	const struct raw_file *file;
	raw_serve_function *serve;
};

static void *serve_one(void *argument)
{
	const struct serving *one = argument;
	one->serve(one->fd, one->options, one->file);
	return NULL;
}

static _Noreturn void serve_all(int listener, const struct serving *what)
{
	size_t count = what->options->connections;
	struct serving *all = calloc(count, sizeof *all);
	int one = 1;
	if (!all)
		raw_die("calloc");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	raw_pin(what->options->server_cpu);
	for (size_t i = 0; i < count; i++) {
		all[i] = *what;
		all[i].fd = accept(listener, NULL, NULL);
		if (all[i].fd < 0 || setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
			raw_die("accept");
		if (i && pthread_create(&all[i].thread, NULL, serve_one, &all[i]))
			raw_die("pthread_create");
	}
	serve_one(&all[0]);
	for (size_t i = 1; i < count; i++)
		pthread_join(all[i].thread, NULL);
	_exit(0);
}

pid_t raw_connect_all(const struct raw_options *options, const struct raw_file *file,
                      raw_serve_function *serve, int *fds)
{
	raw_enter(options->server_netns);
	int listener = raw_listen(options);
	pid_t server = fork();
	if (server < 0)
		raw_die("fork");
	if (server == 0)
		serve_all(listener, &(struct serving){.options = options, .file = file, .serve = serve});
	raw_enter(options->client_netns);
	for (size_t i = 0; i < options->connections; i++)
		fds[i] = raw_connect(options, listener);
	close(listener);
	raw_pin(options->client_cpu);
	return server;
}

void raw_reap(const struct raw_options *options, const int *fds, pid_t server)
{
	int status = 0;
	for (size_t i = 0; i < options->connections; i++)
		close(fds[i]);
	if (waitpid(server, &status, 0) != server || status)
		raw_die("the serving child failed");
}

/* The tenth column of /proc/PID/stat; the second one may contain blanks. */
static uint64_t faults_of(pid_t pid)
{
	char path[64], line[1024];
	unsigned long long faults = 0;
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	FILE *file = fopen(path, "re");
	if (!file || !fgets(line, sizeof line, file))
		raw_die(path);
	fclose(file);
	const char *rest = strrchr(line, ')');
	if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %llu", &faults) != 1)
		raw_die(path);
	return faults;
}

static uint64_t faults_now(pid_t server)
{
	struct rusage own;
	if (getrusage(RUSAGE_SELF, &own))
		raw_die("getrusage");
	return (uint64_t)own.ru_minflt + (server ? faults_of(server) : 0);
}

void raw_meter_start(struct raw_meter *meter, pid_t server)
{
	meter->server = server;
	meter->minor_faults = faults_now(server);
	meter->server_cpu_s = server ? raw_cpu_seconds(raw_process_clock(server)) : 0;
	meter->client_cpu_s = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
	meter->start = raw_now();
}

void raw_meter_stop(const struct raw_meter *meter, struct raw_result *result)
{
	pid_t server = meter->server;
	result->seconds = raw_now() - meter->start;
	result->client_cpu_s = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - meter->client_cpu_s;
	if (server)
		result->server_cpu_s = raw_cpu_seconds(raw_process_clock(server)) - meter->server_cpu_s;
	result->minor_faults = faults_now(server) - meter->minor_faults;
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

void raw_send_vector(int fd, struct iovec *parts, size_t count)
{
	while (count) {
		ssize_t sent = writev(fd, parts, (int)count);
		if (sent <= 0)
			raw_die("writev");
		size_t left = (size_t)sent;
		for (; count && left >= parts->iov_len; parts++, count--)
			left -= parts->iov_len;
		if (count) {
			parts->iov_base = (uint8_t *)parts->iov_base + left;
			parts->iov_len -= left;
		}
	}
}

void raw_send_file(int fd, const struct raw_file *file, off_t offset, size_t bytes)
{
	while (bytes) {
		ssize_t sent = sendfile(fd, file->fd, &offset, bytes);
		if (sent <= 0)
			raw_die("sendfile");
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
	       "\"server_cpu_s\": %.6f, \"checked\": %zu, \"minor_faults\": %llu%s}\n",
	       result->seconds, (unsigned long long)result->bytes,
	       (unsigned long long)result->operations, result->client_cpu_s, result->server_cpu_s,
	       result->checked, (unsigned long long)result->minor_faults, more);
}
