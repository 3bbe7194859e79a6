/* What the plain C limits share: options, clocks, pinning, sockets, one line of JSON.
 *
 * These programs are yardsticks, not parts of FFS: the shortest loop that moves the same bytes the
 * same way (same range size, same destination size, same congestion control, same two CPUs). They
 * are compiled on demand by bench/rawtools.py and never installed.
 *
 * Every program takes `name=value` arguments and prints one JSON object to stdout. Any failure
 * prints one line to stderr and exits with status 1: a yardstick that half works is worse than
 * none.
 *
 * A networked program forks: the child serves on `server_cpu`, the parent is the client on
 * `client_cpu` and reads the child's CPU clock, so that only the timed part is charged to either.
 * With more than one connection each side has a thread for each.
 */
#ifndef FFS_BENCH_RAW_H
#define FFS_BENCH_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

struct raw_options {
	const char *file;       /* data set: read only, expected in the page cache */
	const char *mode;       /* how the server finds its bytes, or which roofline */
	const char *congestion; /* TCP_CONGESTION of both ends */
	double seconds;         /* length of the timed part */
	size_t range_bytes;     /* one request's payload */
	size_t window;          /* ranges in flight (stream) or per call (small) */
	size_t call;            /* ranges after which to wait for all (stream); 0: never */
	size_t dest_bytes;      /* destination memory, used round robin */
	int receive_buffer_bytes;
	int client_cpu; /* -1: stay where the caller runs */
	int server_cpu;
	size_t check;  /* ranges to compare with the file after the timed part */
	uint64_t seed; /* 0: in order, where there is a choice */
	size_t connections;
	double warm_seconds;      /* of the same work before the timed part, at least */
	const char *host;         /* IPv4 address to serve at; NULL: loopback */
	const char *server_netns; /* network namespaces, as files of /run/netns; NULL: this one */
	const char *client_netns;
	const char *latencies; /* where to leave each call's microseconds, as floats; NULL: nowhere */
	const char *fds;       /* connections that were made for this program, "3,4,5" */
	size_t server_pid;     /* who serves at their other ends */
	uint64_t blob;         /* where in a cluster the file lies (crowd.c) */
	uint32_t target;
	size_t chunk_bytes;
};

/* One request for a range, and the header in front of each reply. */
struct raw_range {
	uint64_t offset;
	uint32_t bytes;
	uint32_t tag;
};

/* What a run came to; `checked` counts ranges whose bytes were compared with the file. */
struct raw_result {
	double seconds;
	uint64_t bytes;
	uint64_t operations;
	double client_cpu_s;
	double server_cpu_s;
	size_t checked;
	uint64_t minor_faults; /* of both sides */
};

/* Taken before the timed part, and held against the same clocks after it. */
struct raw_meter {
	pid_t server; /* 0: there is none */
	double start;
	double client_cpu_s;
	double server_cpu_s;
	uint64_t minor_faults;
};

/* A file mapped read only and resident, with its descriptor. */
struct raw_file {
	int fd;
	size_t bytes;
	const uint8_t *map;
};

_Noreturn void raw_die(const char *what);
void raw_parse(int argc, char **argv, struct raw_options *options);

double raw_now(void);
double raw_cpu_seconds(clockid_t clock);
clockid_t raw_process_clock(pid_t pid);
void raw_pin(int cpu);
uint64_t raw_random(uint64_t *state);

void raw_open(const char *path, struct raw_file *file);
uint8_t *raw_memory(size_t bytes); /* anonymous, touched, never freed */

typedef void raw_serve_function(int fd, const struct raw_options *options,
                                const struct raw_file *file);

/* Fork a server that runs `serve` on each of options->connections sockets, which go to `fds`. */
pid_t raw_connect_all(const struct raw_options *options, const struct raw_file *file,
                      raw_serve_function *serve, int *fds);
void raw_reap(const struct raw_options *options, const int *fds, pid_t server);

/* The parts of the above, for programs whose server is another. */
int raw_listen(const struct raw_options *options);
int raw_connect(const struct raw_options *options, int listener);
void raw_enter(const char *netns);

void raw_meter_start(struct raw_meter *meter, pid_t server);
void raw_meter_stop(const struct raw_meter *meter, struct raw_result *result);

void raw_send(int fd, const void *data, size_t bytes, int flags);
void raw_send_vector(int fd, struct iovec *parts, size_t count); /* spoils `parts` */
void raw_send_file(int fd, const struct raw_file *file, off_t offset, size_t bytes);
void raw_recv(int fd, void *data, size_t bytes);
bool raw_recv_or_end(int fd, void *data, size_t bytes); /* false: the peer closed before any byte */

void raw_print(const struct raw_result *result, const char *more);

#endif
