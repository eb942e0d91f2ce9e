"""What may lie where a file is expected, and must never be opened: pipes, devices, folders, sockets, links to them."""

import os
import socket

import pytest


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def linked_device(path):
    path.symlink_to("/dev/zero")


def linked_pipe(path):
    os.mkfifo(path.with_name(f"{path.name}.pipe"))
    path.symlink_to(path.with_name(f"{path.name}.pipe"))


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            # A socket's address is short: the folder by its descriptor.
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


KINDS = {"a pipe": fifo, "a folder": folder, "a device": linked_device, "a socket": unix_socket}
EVERY = [*KINDS.values(), linked_pipe]

needs_posix = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux' kinds of files")  # noqa: PTH110
