/*
 * What latency.h collects as Python objects, for the two modules: include Python.h first.
 *
 * Needs the interpreter's lock; NULL with an exception set where memory is short.
 */
#ifndef FFS_CORE_PY_LATENCY_H
#define FFS_CORE_PY_LATENCY_H

#include "core/latency.h"

/* (sum of all durations in ns, then how many fell into each bucket) */
static inline PyObject *ffs_py_histogram(const uint64_t sum[FFS_LATENCY_NUMBERS])
{
	PyObject *numbers = PyTuple_New(FFS_LATENCY_NUMBERS);
	for (uint32_t i = 0; numbers != NULL && i < FFS_LATENCY_NUMBERS; i++) {
		PyObject *number = PyLong_FromUnsignedLongLong(sum[i]);
		if (number == NULL || PyTuple_SetItem(numbers, (Py_ssize_t)i, number) != 0)
			Py_CLEAR(numbers);
	}
	return numbers;
}

static inline PyObject *ffs_py_slow_read(const struct ffs_slow_read *read, uint64_t now_ns)
{
	uint64_t age_ns = read->ended_ns < now_ns ? now_ns - read->ended_ns : 0;
	return Py_BuildValue("(KKKKKKKKI)", (unsigned long long)age_ns,
	                     (unsigned long long)read->took_ns, (unsigned long long)read->queued_ns,
	                     (unsigned long long)read->disk_ns, (unsigned long long)read->trace_id,
	                     (unsigned long long)read->connection, (unsigned long long)read->blob,
	                     (unsigned long long)read->bytes, (unsigned int)read->ranges);
}

/* Each as (age, took, queued, disk, trace id, connection, blob, bytes, ranges); times in ns. */
static inline PyObject *ffs_py_slow_reads(const struct ffs_slow_read *reads, uint32_t count,
                                          uint64_t now_ns)
{
	PyObject *list = PyList_New((Py_ssize_t)count);
	for (uint32_t i = 0; list != NULL && i < count; i++) {
		PyObject *read = ffs_py_slow_read(&reads[i], now_ns);
		if (read == NULL || PyList_SetItem(list, (Py_ssize_t)i, read) != 0)
			Py_CLEAR(list);
	}
	return list;
}

#endif
