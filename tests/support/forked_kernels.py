"""Kernels of notebooks, forked from the process that has imported the libraries, because importing them takes seconds.

The first notebook gets a kernel of its own, as a reader's does: one that imports what it needs inside Jupyter.
"""

import gc
import os

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from tests.support.processes import FORKED

BY_ITSELF = "1_quickstart"


class ForkedKernel:
    """A forked kernel, as `jupyter_client` handles a process."""

    stdin = stdout = stderr = None

    def __init__(self, arguments, environment, folder):
        self.process = FORKED.Process(target=_run, args=(arguments, environment, folder))
        self.process.start()
        self.pid, self.kill, self.terminate = self.process.pid, self.process.kill, self.process.terminate

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def _run(arguments, environment, folder):
    gc.freeze()
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))  # it ends with its parent
    os.chdir(folder)
    import matplotlib as mpl
    from ipykernel.kernelapp import launch_new_instance

    mpl.rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # as a kernel sets it before the first import
    launch_new_instance(arguments)


def fork_kernels() -> None:
    """Let every notebook but the first run in a forked kernel."""
    launch = LocalProvisioner.launch_kernel

    async def launch_kernel(self, cmd, **given):
        if BY_ITSELF in os.environ.get("PYTEST_CURRENT_TEST", ""):
            return await launch(self, cmd, **given)
        self.process = ForkedKernel(cmd[cmd.index("ipykernel_launcher") + 1 :], given["env"], given["cwd"])
        self.pid, self.cwd = self.process.pid, given["cwd"]
        return self.connection_info

    LocalProvisioner.launch_kernel = launch_kernel
