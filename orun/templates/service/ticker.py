"""A plain command: says that it is ready, then prints a line each second. Any program will do in its place."""

import os
import socket
import time


def say_ready():
    """Tell the supervisor, as systemd's services do."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.sendto(b"READY=1", address)


if __name__ == "__main__":
    say_ready()
    while True:
        print(time.strftime("%H:%M:%S"), "tick", flush=True)
        time.sleep(1)
