"""One compute queue: command buffers, the pipelines of the kernels, submission and waiting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nocopy.device import launches
from nocopy.device.vulkan_api import Api
from nocopy.errors import DeviceLostError

WAIT_SLICE = 100_000_000  # ns; between slices Python handles signals, so Ctrl-C works while a kernel runs
GRACE = 30.0  # s after a timeout until a program counts as hung
VK_TIMEOUT = 2


class Queue:
    """A command pool, a fence and a pipeline for each kernel and each combination of element types."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._pipelines: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._modules: dict[str, Any] = {}
        vk, ffi, lib = api.vk, api.ffi, api.lib
        pool = ffi.new("VkCommandPool *")
        info = api.new("VkCommandPoolCreateInfo", "COMMAND_POOL_CREATE_INFO", queueFamilyIndex=api.family)
        api.check(lib.vkCreateCommandPool(api.device, info, ffi.NULL, pool), "creating a command pool")
        self._fence_array = ffi.new("VkFence[1]")
        info = api.new("VkFenceCreateInfo", "FENCE_CREATE_INFO")
        api.check(lib.vkCreateFence(api.device, info, ffi.NULL, self._fence_array), "creating a fence")
        constant = ffi.new("VkPushConstantRange *", {"stageFlags": vk.VK_SHADER_STAGE_COMPUTE_BIT, "size": 8})
        info = api.new(
            "VkPipelineLayoutCreateInfo", "PIPELINE_LAYOUT_CREATE_INFO",
            pushConstantRangeCount=1, pPushConstantRanges=constant,
        )  # fmt: skip
        layout = ffi.new("VkPipelineLayout *")
        api.check(lib.vkCreatePipelineLayout(api.device, info, ffi.NULL, layout), "creating a layout")
        self._pool, self._fence, self._layout = pool[0], self._fence_array[0], layout[0]
        shader, host = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT
        write, read = vk.VK_ACCESS_SHADER_WRITE_BIT, vk.VK_ACCESS_SHADER_READ_BIT
        self._between = self._barrier(shader, shader, write, read | write)
        self._after_transfer = self._barrier(
            vk.VK_PIPELINE_STAGE_TRANSFER_BIT, shader, vk.VK_ACCESS_TRANSFER_WRITE_BIT, read | write
        )
        self._to_host = self._barrier(
            shader, host, write, vk.VK_ACCESS_HOST_READ_BIT | vk.VK_ACCESS_HOST_WRITE_BIT
        )

    def record(self, todo: Sequence[launches.Launch], arguments: int) -> Any:
        """A command buffer that plays launches whose argument blocks start at a device address."""
        lib, ffi = self._api.lib, self._api.ffi
        pipelines = [self._pipeline(launch.kernel, launch.constants) for launch in todo]
        commands = self.begin()
        push = ffi.new("uint64_t *")
        for index, (launch, pipeline) in enumerate(zip(todo, pipelines, strict=True)):
            if launch.barrier:
                lib.vkCmdPipelineBarrier(commands, *self._between)
            push[0] = arguments + index * launches.ARGS_BYTES
            lib.vkCmdBindPipeline(commands, self._api.vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline)
            stage = self._api.vk.VK_SHADER_STAGE_COMPUTE_BIT
            lib.vkCmdPushConstants(commands, self._layout, stage, 0, 8, push)
            lib.vkCmdDispatch(commands, launch.groups, 1, 1)
        lib.vkCmdPipelineBarrier(commands, *self._to_host)
        self._api.check(lib.vkEndCommandBuffer(commands), f"recording {len(todo)} kernels")
        return commands

    def submit(self, submit: Any, what: str, timeout: float | None) -> float | None:
        """Submit and wait for the end. Returns how long it took if that was longer than `timeout`."""
        api, lib = self._api, self._api.lib
        if api.lost:
            raise DeviceLostError(f"{what}: {api.product} was lost before; open the device again")
        lib.vkResetFences(api.device, 1, self._fence_array)
        started = time.monotonic()
        result = lib.vkQueueSubmit(api.queue, 1, submit, self._fence)
        if result:
            api.fail(result, what)
        result = lib.vkWaitForFences(api.device, 1, self._fence_array, 1, WAIT_SLICE)
        while result == VK_TIMEOUT:
            if timeout is not None and time.monotonic() - started > timeout + GRACE:
                api.lost = True
                raise DeviceLostError(
                    f"{what}: {api.product} still runs {GRACE} s after the timeout of {timeout} s;"
                    " its memory stays imported; open the device again"
                )
            result = lib.vkWaitForFences(api.device, 1, self._fence_array, 1, WAIT_SLICE)
        if result:
            api.fail(result, what)
        if timeout is None:
            return None
        took = time.monotonic() - started
        return took if took > timeout else None

    def begin(self) -> Any:
        """A new command buffer that is being recorded."""
        api = self._api
        info = api.new(
            "VkCommandBufferAllocateInfo", "COMMAND_BUFFER_ALLOCATE_INFO",
            commandPool=self._pool, commandBufferCount=1,
        )  # fmt: skip
        out = api.ffi.new("VkCommandBuffer *")
        api.check(api.lib.vkAllocateCommandBuffers(api.device, info, out), "allocating a command buffer")
        begin = api.new("VkCommandBufferBeginInfo", "COMMAND_BUFFER_BEGIN_INFO")
        api.check(api.lib.vkBeginCommandBuffer(out[0], begin), "beginning a command buffer")
        return out[0]

    def run_once(self, commands: Any, what: str) -> None:
        """End, submit, wait for and free a command buffer of transfers; kernels see what they wrote."""
        api = self._api
        api.lib.vkCmdPipelineBarrier(commands, *self._after_transfer)
        handles = api.ffi.new("VkCommandBuffer[]", [commands])
        submit = api.new("VkSubmitInfo", "SUBMIT_INFO", commandBufferCount=1, pCommandBuffers=handles)
        api.check(api.lib.vkEndCommandBuffer(commands), what)
        self.submit(submit, what, None)
        api.lib.vkFreeCommandBuffers(api.device, self._pool, 1, handles)

    def _barrier(self, source: int, target: int, written: int, wanted: int) -> tuple[Any, ...]:
        """The arguments of vkCmdPipelineBarrier after the command buffer."""
        barrier = self._api.new(
            "VkMemoryBarrier", "MEMORY_BARRIER", srcAccessMask=written, dstAccessMask=wanted
        )
        null = self._api.ffi.NULL
        return source, target, 0, 1, barrier, 0, null, 0, null

    def _pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        """The kernel specialised for a function and dtypes; made once."""
        key = kernel, constants
        if key not in self._pipelines:
            self._pipelines[key] = self._create_pipeline(kernel, constants)
        return self._pipelines[key]

    def _module(self, kernel: str) -> Any:
        if kernel not in self._modules:
            api = self._api
            code = launches.kernel_code(kernel, "spv")
            words = api.ffi.new("uint32_t[]", len(code) // 4)
            api.ffi.buffer(words)[:] = code
            info = api.new(
                "VkShaderModuleCreateInfo", "SHADER_MODULE_CREATE_INFO", codeSize=len(code), pCode=words
            )
            out = api.ffi.new("VkShaderModule *")
            result = api.lib.vkCreateShaderModule(api.device, info, api.ffi.NULL, out)
            api.check(result, f"loading the kernel {kernel}")
            self._modules[kernel] = out[0]
        return self._modules[kernel]

    def _create_pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        api, ffi = self._api, self._api.ffi
        entries = ffi.new("VkSpecializationMapEntry[]", [(i, 4 * i, 4) for i in range(len(constants))])
        data = ffi.new("char[]", launches.pack_constants(constants))
        special = ffi.new("VkSpecializationInfo *", (len(constants), entries, 4 * len(constants), data))
        main = ffi.new("char[]", b"main")
        info = api.new("VkComputePipelineCreateInfo", "COMPUTE_PIPELINE_CREATE_INFO", layout=self._layout)
        info.stage.sType = api.vk.VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO
        info.stage.stage = api.vk.VK_SHADER_STAGE_COMPUTE_BIT
        info.stage.module, info.stage.pName = self._module(kernel), main
        info.stage.pSpecializationInfo = special
        out = ffi.new("VkPipeline *")
        result = api.lib.vkCreateComputePipelines(api.device, ffi.NULL, 1, info, ffi.NULL, out)
        api.check(result, f"compiling the kernel {kernel} for {constants}")
        return out[0]

    def free(self, handles: Any) -> None:
        """Free a command buffer, given as an array of one."""
        self._api.lib.vkFreeCommandBuffers(self._api.device, self._pool, 1, handles)

    def close(self) -> None:
        """Destroy the pipelines and the rest."""
        device, lib, null = self._api.device, self._api.lib, self._api.ffi.NULL
        for pipeline in self._pipelines.values():
            lib.vkDestroyPipeline(device, pipeline, null)
        for module in self._modules.values():
            lib.vkDestroyShaderModule(device, module, null)
        lib.vkDestroyPipelineLayout(device, self._layout, null)
        lib.vkDestroyFence(device, self._fence, null)
        lib.vkDestroyCommandPool(device, self._pool, null)
