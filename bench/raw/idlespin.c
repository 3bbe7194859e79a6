/* Keep one CPU from going idle, at a priority below everything else.
 *
 * On a virtual machine an idle CPU is given back to the host, and each wake-up then costs a
 * reschedule there, which shows as steal and as noise larger than most effects worth measuring. A
 * spinner in the SCHED_IDLE class runs only when nothing else wants the CPU and so takes nothing
 * from what is measured.
 *
 * Usage: idlespin CPU SECONDS PARENT_PID. Ends after SECONDS, or as soon as its parent ends.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static long number(const char *text)
{
	char *end = NULL;
	long value = strtol(text, &end, 10);
	if (end == text || *end) {
		fprintf(stderr, "idlespin: %s is not a number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: idlespin CPU SECONDS PARENT_PID\n");
		return 2;
	}
	struct sched_param none = {0};
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((unsigned)number(argv[1]), &set);
	if (sched_setaffinity(0, sizeof set, &set) || sched_setscheduler(0, SCHED_IDLE, &none)) {
		perror("idlespin");
		return 1;
	}
	alarm((unsigned)number(argv[2]));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != number(argv[3])) /* the parent ended before prctl could tell */
		return 0;
	for (;;)
		relax();
}
