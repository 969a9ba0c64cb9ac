"""Vulkan up to a logical device: the loader, the choice of a physical device, what it must be able to do.

Functions are called through cffi as the C header declares them: the `vulkan` package's own wrappers convert
every argument on each call, and its `vkGetBufferDeviceAddress` and error names are wrong. Structures that
point to one another are kept alive by the local variables of the function that passes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn

from nocopy.errors import CopyRefusedError, DeviceError, DeviceLostError, DeviceUnavailableError

PIP_FIX = "pip install vulkan"
LOADER_FIX = "apt-get install libvulkan1 mesa-vulkan-drivers, or your GPU vendor's driver."
API_VERSION = (1 << 22) | (2 << 12)  # VK_API_VERSION_1_2
HOST_IMPORT = b"VK_EXT_external_memory_host"
VALIDATION_LAYER = b"VK_LAYER_KHRONOS_validation"
TYPE_NAMES = {0: "other", 1: "integrated GPU", 2: "discrete GPU", 3: "virtual GPU", 4: "CPU"}
TYPE_ORDER = (2, 1, 3, 0, 4)  # VkPhysicalDeviceType, best first
TYPE_CPU = 4
BUFFER_USAGE = 0x1 | 0x2 | 0x20 | 0x20000  # transfer source and target, storage, shader device address

Validate = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What a device allows, in bytes. `buffer` is the largest buffer; `alignment` that of imported pages."""

    buffer: int
    alignment: int


@dataclass
class Api:
    """A logical device with one compute queue, and what belongs to it."""

    vk: Any
    instance: Any
    physical: Any
    device: Any
    queue: Any
    family: int
    product: str
    type: int
    details: dict[str, str]
    limits: Limits
    memory_types: list[int]
    heap_bytes: int
    device_bytes: int
    host_pointer_properties: Any
    messenger: tuple[Any, Any] | None
    lost: bool = field(default=False, init=False)

    @property
    def lib(self) -> Any:
        """The C functions."""
        return self.vk.lib

    @property
    def ffi(self) -> Any:
        """The cffi instance."""
        return self.vk.ffi

    @property
    def can_import(self) -> bool:
        """True if the driver knows how to import host pages."""
        return self.host_pointer_properties is not None

    def new(self, name: str, kind: str, **fields: Any) -> Any:
        """A structure with its sType."""
        return new(self.vk, name, kind, **fields)

    def check(self, result: int, what: str) -> None:
        """Raise for a result that is not success.

        Raises:
            DeviceLostError: the device is lost.
            DeviceError: anything else.
        """
        if result:
            self.fail(result, what)

    def fail(self, result: int, what: str) -> NoReturn:
        """Raise the error for a result."""
        name = result_name(self.vk, result)
        if name == "VK_ERROR_DEVICE_LOST":
            self.lost = True
            raise DeviceLostError(f"{what}: {self.product} is lost ({name}); open the device again")
        raise DeviceError(f"{what}: {self.product} answered {name}")

    def close(self) -> None:
        """Destroy the logical device and the instance."""
        if self.device is None:
            return
        self.lib.vkDestroyDevice(self.device, self.ffi.NULL)
        if self.messenger is not None:
            destroy = instance_function(self.vk, self.instance, "vkDestroyDebugUtilsMessengerEXT")
            destroy(self.instance, self.messenger[0], self.ffi.NULL)
        self.lib.vkDestroyInstance(self.instance, self.ffi.NULL)
        self.device = self.instance = None


@dataclass(frozen=True)
class Candidate:
    """A physical device under examination. `lacks` is empty if it can play tapes."""

    handle: Any
    name: str
    type: int
    details: dict[str, str]
    lacks: tuple[str, ...]
    family: int
    imports: bool
    limits: Limits


def new(vk: Any, name: str, kind: str, **fields: Any) -> Any:
    """A structure with its sType, which is `VK_STRUCTURE_TYPE_` and `kind`."""
    return vk.ffi.new(f"{name} *", {"sType": getattr(vk, f"VK_STRUCTURE_TYPE_{kind}"), **fields})


def result_name(vk: Any, result: int) -> str:
    """The name of a VkResult; its number if the header does not know it."""
    return vk.ffi.string(vk.ffi.cast("VkResult", result))


def instance_function(vk: Any, instance: Any, name: str) -> Any:
    """An extension's function, or None."""
    pointer = vk.lib.vkGetInstanceProcAddr(instance, name.encode())
    return vk.ffi.cast(f"PFN_{name}", pointer) if pointer else None


def _unavailable(reason: str, fix: str) -> NoReturn:
    raise DeviceUnavailableError("vulkan", reason, fix)


def load() -> Any:
    """The `vulkan` package's module of declarations.

    Raises:
        DeviceUnavailableError: the package or the loader library is missing.
    """
    try:
        return import_module("vulkan._vulkan")
    except ImportError:
        _unavailable("the Python package 'vulkan' is not installed", PIP_FIX)
    except OSError:
        _unavailable("the Vulkan loader (libvulkan.so.1) is not installed", LOADER_FIX)


def open_api(*, allow_copy: bool, validate: Validate | None = None) -> Api:
    """Open the best physical device.

    Args:
        allow_copy: also take a device that cannot import host pages.
        validate: turn the validation layer on and call this with each of its messages.

    Raises:
        DeviceUnavailableError: no driver, or no device that can play tapes; it says which lacks what.
        CopyRefusedError: the only devices that can play tapes cannot import host pages.
    """
    vk = load()
    instance, messenger = _create_instance(vk, validate)
    try:
        best = _choose(_candidates(vk, instance), allow_copy)
        return _create_device(vk, instance, messenger, best)
    except Exception:
        vk.lib.vkDestroyInstance(instance, vk.ffi.NULL)
        raise


def _create_instance(vk: Any, validate: Validate | None) -> tuple[Any, tuple[Any, Any] | None]:
    ffi = vk.ffi
    application = new(vk, "VkApplicationInfo", "APPLICATION_INFO", apiVersion=API_VERSION)
    info = new(vk, "VkInstanceCreateInfo", "INSTANCE_CREATE_INFO", pApplicationInfo=application)
    names: list[Any] = []
    if validate is not None:
        names = [ffi.new("char[]", VALIDATION_LAYER), ffi.new("char[]", b"VK_EXT_debug_utils")]
        layers, extensions = ffi.new("char *[]", names[:1]), ffi.new("char *[]", names[1:])
        info.enabledLayerCount, info.ppEnabledLayerNames = 1, layers
        info.enabledExtensionCount, info.ppEnabledExtensionNames = 1, extensions
    out = ffi.new("VkInstance *")
    result = vk.lib.vkCreateInstance(info, ffi.NULL, out)
    if result:
        layer = f"; the layer {VALIDATION_LAYER.decode()} was asked for" if names else ""
        _unavailable(f"no Vulkan driver could be loaded ({result_name(vk, result)}{layer})", LOADER_FIX)
    return out[0], _create_messenger(vk, out[0], validate) if validate else None


def _create_messenger(vk: Any, instance: Any, validate: Validate) -> tuple[Any, Any]:
    ffi = vk.ffi

    def tell(_severity: int, _types: int, data: Any, _user: Any) -> int:
        validate(ffi.string(data.pMessage).decode())
        return 0

    callback = ffi.callback("PFN_vkDebugUtilsMessengerCallbackEXT", tell)
    info = new(
        vk, "VkDebugUtilsMessengerCreateInfoEXT", "DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT",
        messageSeverity=0x1100, messageType=0x7, pfnUserCallback=callback,  # warnings and errors
    )  # fmt: skip
    out = ffi.new("VkDebugUtilsMessengerEXT *")
    create = instance_function(vk, instance, "vkCreateDebugUtilsMessengerEXT")
    if create(instance, info, ffi.NULL, out):
        _unavailable("the validation layer takes no messenger", "apt-get install vulkan-validationlayers")
    return out[0], callback


def _list(vk: Any, kind: str, call: Callable[[Any, Any], Any]) -> list[Any]:
    """What one of Vulkan's two-call enumerations finds."""
    count = vk.ffi.new("uint32_t *")
    call(count, vk.ffi.NULL)
    if not count[0]:
        return []
    items = vk.ffi.new(f"{kind}[]", count[0])
    call(count, items)
    return [items[i] for i in range(count[0])]


def _candidates(vk: Any, instance: Any) -> list[Candidate]:
    handles = _list(vk, "VkPhysicalDevice", lambda n, p: vk.lib.vkEnumeratePhysicalDevices(instance, n, p))
    return [_examine(vk, handle) for handle in handles]


def _choose(candidates: list[Candidate], allow_copy: bool) -> Candidate:
    """The best device that can play tapes; real GPUs first, and first of all those that import host pages."""
    able = [c for c in candidates if not c.lacks]
    if not candidates:
        _unavailable("the Vulkan loader found no device", LOADER_FIX)
    if not able:
        found = "; ".join(f"{c.name} lacks {', '.join(c.lacks)}" for c in candidates)
        _unavailable(found, "Update the driver, or use another device.")
    sharing = [c for c in able if c.imports]
    if not sharing and not allow_copy:
        raise CopyRefusedError(
            f"device 'vulkan' was asked for; {able[0].name} cannot import host pages"
            f" ({HOST_IMPORT.decode()} is missing), so it would have to copy; allow copies,"
            " or use another device"
        )
    return min(able if allow_copy else sharing, key=lambda c: (TYPE_ORDER.index(c.type), not c.imports))


REQUIRED = {
    "shaderInt64": "features", "shaderInt16": "features", "storageBuffer16BitAccess": "v11",
    "storageBuffer8BitAccess": "v12", "shaderInt8": "v12", "bufferDeviceAddress": "v12",
}  # fmt: skip
"""Features that the kernels need, and the structure that holds each."""


def _features(vk: Any) -> tuple[Any, Any, Any]:
    v12 = new(vk, "VkPhysicalDeviceVulkan12Features", "PHYSICAL_DEVICE_VULKAN_1_2_FEATURES")
    v11 = new(vk, "VkPhysicalDeviceVulkan11Features", "PHYSICAL_DEVICE_VULKAN_1_1_FEATURES", pNext=v12)
    all_of_them = new(vk, "VkPhysicalDeviceFeatures2", "PHYSICAL_DEVICE_FEATURES_2", pNext=v11)
    return all_of_them, v11, v12


def _examine(vk: Any, handle: Any) -> Candidate:
    ffi, lib = vk.ffi, vk.lib
    basic = ffi.new("VkPhysicalDeviceProperties *")
    lib.vkGetPhysicalDeviceProperties(handle, basic)
    name, kind = ffi.string(basic.deviceName).decode(errors="replace"), int(basic.deviceType)
    version = f"{basic.apiVersion >> 22 & 0x7F}.{basic.apiVersion >> 12 & 0x3FF}"
    if basic.apiVersion < API_VERSION:
        return Candidate(handle, name, kind, {}, (f"Vulkan 1.2 (it has {version})",), 0, False, Limits(0, 0))
    extensions = {
        ffi.string(e.extensionName)
        for e in _list(
            vk, "VkExtensionProperties",
            lambda n, p: lib.vkEnumerateDeviceExtensionProperties(handle, ffi.NULL, n, p),
        )
    }  # fmt: skip
    lacks: list[str] = []
    features, v11, v12 = _features(vk)
    lib.vkGetPhysicalDeviceFeatures2(handle, features)
    holders = {"features": features.features, "v11": v11, "v12": v12}
    lacks += [f"feature {f}" for f, holder in REQUIRED.items() if not getattr(holders[holder], f)]
    imports = HOST_IMPORT in extensions
    limits, driver, nan = _properties(vk, handle, basic.apiVersion, imports)
    if not nan:
        lacks.append("shaderSignedZeroInfNanPreserveFloat32")
    families = _list(
        vk, "VkQueueFamilyProperties",
        lambda n, p: lib.vkGetPhysicalDeviceQueueFamilyProperties(handle, n, p),
    )  # fmt: skip
    compute = [i for i, f in enumerate(families) if f.queueFlags & vk.VK_QUEUE_COMPUTE_BIT]
    if not compute:
        lacks.append("a compute queue")
    details = {"driver": driver, "vulkan": version, "type": TYPE_NAMES[kind]}
    family = compute[0] if compute else 0
    imports = imports and _importable(vk, handle)
    return Candidate(handle, name, kind, details, tuple(lacks), family, imports, limits)


def _properties(vk: Any, handle: Any, api_version: int, imports: bool) -> tuple[Limits, str, bool]:
    """Limits, the driver's name, and whether f32 keeps NaN, infinities and the sign of 0."""
    ffi = vk.ffi
    host = new(
        vk, "VkPhysicalDeviceExternalMemoryHostPropertiesEXT",
        "PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT",
    )  # fmt: skip
    m4 = new(vk, "VkPhysicalDeviceMaintenance4Properties", "PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES")
    v12 = new(vk, "VkPhysicalDeviceVulkan12Properties", "PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES")
    v11 = new(vk, "VkPhysicalDeviceVulkan11Properties", "PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES", pNext=v12)
    properties = new(vk, "VkPhysicalDeviceProperties2", "PHYSICAL_DEVICE_PROPERTIES_2", pNext=v11)
    last = v12
    if api_version >= (1 << 22) | (3 << 12):
        last.pNext = ffi.cast("void *", m4)
        last = m4
    if imports:
        last.pNext = ffi.cast("void *", host)
    vk.lib.vkGetPhysicalDeviceProperties2(handle, properties)
    largest = v11.maxMemoryAllocationSize
    if m4.maxBufferSize:
        largest = min(largest, m4.maxBufferSize)
    alignment = max(host.minImportedHostPointerAlignment, 4096)
    driver = f"{ffi.string(v12.driverName).decode()} {ffi.string(v12.driverInfo).decode()}".strip()
    nan = bool(v12.shaderSignedZeroInfNanPreserveFloat32)
    return Limits(largest // alignment * alignment, alignment), driver, nan


def _importable(vk: Any, handle: Any) -> bool:
    """True if a buffer of the kind that kernels use can lie in imported host memory."""
    info = new(
        vk, "VkPhysicalDeviceExternalBufferInfo", "PHYSICAL_DEVICE_EXTERNAL_BUFFER_INFO",
        usage=BUFFER_USAGE, handleType=vk.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT,
    )  # fmt: skip
    out = new(vk, "VkExternalBufferProperties", "EXTERNAL_BUFFER_PROPERTIES")
    vk.lib.vkGetPhysicalDeviceExternalBufferProperties(handle, info, out)
    wanted = vk.VK_EXTERNAL_MEMORY_FEATURE_IMPORTABLE_BIT
    return bool(out.externalMemoryProperties.externalMemoryFeatures & wanted)


def _create_device(vk: Any, instance: Any, messenger: tuple[Any, Any] | None, best: Candidate) -> Api:
    ffi, lib = vk.ffi, vk.lib
    priority = ffi.new("float *", 1.0)
    queue_info = new(
        vk, "VkDeviceQueueCreateInfo", "DEVICE_QUEUE_CREATE_INFO",
        queueFamilyIndex=best.family, queueCount=1, pQueuePriorities=priority,
    )  # fmt: skip
    features, v11, v12 = _features(vk)
    holders = {"features": features.features, "v11": v11, "v12": v12}
    for feature, holder in REQUIRED.items():
        setattr(holders[holder], feature, 1)
    info = new(
        vk, "VkDeviceCreateInfo", "DEVICE_CREATE_INFO",
        pNext=features, queueCreateInfoCount=1, pQueueCreateInfos=queue_info,
    )  # fmt: skip
    extension = ffi.new("char[]", HOST_IMPORT)
    extensions = ffi.new("char *[]", [extension])
    if best.imports:
        info.enabledExtensionCount, info.ppEnabledExtensionNames = 1, extensions
    device = ffi.new("VkDevice *")
    result = lib.vkCreateDevice(best.handle, info, ffi.NULL, device)
    if result:
        _unavailable(f"{best.name} could not be opened ({result_name(vk, result)})", "Update the driver.")
    queue = ffi.new("VkQueue *")
    lib.vkGetDeviceQueue(device[0], best.family, 0, queue)
    query = None
    if best.imports:
        name = "vkGetMemoryHostPointerPropertiesEXT"
        query = ffi.cast(f"PFN_{name}", lib.vkGetDeviceProcAddr(device[0], name.encode()))
    memory = ffi.new("VkPhysicalDeviceMemoryProperties *")
    lib.vkGetPhysicalDeviceMemoryProperties(best.handle, memory)
    types = [int(memory.memoryTypes[i].propertyFlags) for i in range(memory.memoryTypeCount)]
    heaps = [memory.memoryHeaps[i] for i in range(memory.memoryHeapCount)]
    every = sum(int(h.size) for h in heaps)
    own = sum(int(h.size) for h in heaps if h.flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
    return Api(
        vk, instance, best.handle, device[0], queue[0], best.family, best.name, best.type, best.details,
        best.limits, types, every, 0 if best.type == TYPE_CPU else own, query, messenger,
    )  # fmt: skip
