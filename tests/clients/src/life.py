# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A machine's life by firecracker-python; its argument describes the machine in JSON.

The balloon has no attribute of `Api`, but paths are objects of the library's class `Resource`.
"""

import json
import pathlib
import sys

from firecracker.api import Resource
from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

machine = json.loads(sys.argv[1])
name = machine["id"]
folder = pathlib.Path(machine["data_path"]) / name
folder.mkdir()

processes, machines = ProcessManager(), VMMManager()
for manager in (processes, machines):
    manager._config.data_path = machine["data_path"]
    manager._config.binary_path = machine["binary_path"]

pid = processes.start(name, [
    "--api-sock", str(folder / "firecracker.socket"),
    "--id", name,
    "--log-path", str(folder / "log"),
])
assert processes.is_running(name)

api = machines.get_api(name)
balloon = Resource(api, "/balloon")
assert api.version.get().json()["firecracker_version"]
assert api.describe.get().json()["id"] == name
api.boot.put(
    kernel_image_path=machine["kernel_image_path"],
    initrd_path=machine["initrd_path"],
    boot_args=machine["boot_args"],
)
api.machine_config.put(vcpu_count=machine["vcpu_count"], mem_size_mib=machine["mem_size_mib"])
balloon.put(amount_mib=0, deflate_on_oom=True, stats_polling_interval_s=1)
if machine["root"]:
    api.drive.put(
        drive_id="rootfs",
        path_on_host=machine["root"],
        is_root_device=True,
        is_read_only=False,
    )
if machine["host_dev_name"]:
    api.network.put(iface_id=machine["iface_id"], host_dev_name=machine["host_dev_name"])
if machine["uds_path"]:
    api.vsock.put(guest_cid=machine["guest_cid"], uds_path=machine["uds_path"])

api.actions.put(action_type="InstanceStart")
# As the library's own `create` ends: each path has a connection of its own, and ten are served.
api.close()
assert machines.get_vmm_state(name) == "Running"
machines.update_vmm_state(name, "Paused")
assert machines.get_vmm_state(name) == "Paused"
machines.update_vmm_state(name, "Resumed")
assert machines.get_vmm_state(name) == "Running"
api = machines.get_api(name)
balloon = Resource(api, "/balloon")
balloon.patch(amount_mib=machine["target_mib"])
assert balloon.get().json()["amount_mib"] == machine["target_mib"]
assert machines.get_vmm_config(name)["machine-config"]["mem_size_mib"] == machine["mem_size_mib"]
(folder / "balloon").touch()

# Until the other side has seen the guest.
sys.stdin.read()
api.actions.put(action_type="SendCtrlAltDel")
api.close()
processes.stop(name)
