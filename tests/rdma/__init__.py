"""Tests over real verbs: a guest kernel with Soft-RoCE, under QEMU, on any machine."""
