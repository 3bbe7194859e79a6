/* How long this process's calls took, for Python: see ffs/_reader.pyi. */
#include "reader/module.h"

#include "core/py_latency.h"
#include "reader/batch.h"

static PyObject *latency(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	uint64_t sum[FFS_LATENCY_NUMBERS] = {0};
	ffs_counters_read_latency(sum);
	return ffs_py_histogram(sum);
}

static PyObject *slowest(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	struct ffs_slow_read reads[FFS_SLOWEST_MAX];
	uint64_t now_ns = (uint64_t)ffs_now_ns();
	uint32_t count = ffs_counters_slowest(now_ns, reads);
	return ffs_py_slow_reads(reads, count, now_ns);
}

PyMethodDef ffs_latency_methods[] = {
	{"latency", latency, METH_NOARGS, "Durations of the process's calls."},
	{"slowest", slowest, METH_NOARGS, "The slowest calls of the last minute."},
	{NULL, NULL, 0, NULL},
};
