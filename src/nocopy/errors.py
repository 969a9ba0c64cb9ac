"""Every error that nocopy raises.

Error:
    |-- UsageError            a wrong argument, option or file name
    |-- MemoryLimitError      a reservation, a growth or a quota that cannot be met
    |-- ClosedError           a memory, view, guest or device used after it was closed
    |-- StaleViewError        a view that is older than the memory's last growth
    |-- CopyRefusedError      the request would need a copy and copies were not allowed
    |-- TapeError             a record that the validator refuses
    |-- DeviceError           a device that failed
    |   |-- DeviceUnavailableError    not on this machine; carries the reason and the fix
    |   `-- DeviceLostError           failed for good; open it again
    |-- ModelError            something about a model
    |   |-- ModelFileError            a file that breaks its format; carries the kind of defect
    |   |-- UnsupportedModelError     a sound model that nothing here can play
    |   |-- MetadataError             a metadata key that is missing or has another type
    |   |-- TokenizerError            a text, an id or a vocabulary that cannot be used
    |   |-- TemplateError             a chat template that is wrong or exceeds its limits
    |   `-- HubError                  the hub is out of reach, refuses, or has no such model
    |-- SnapshotError           something about a snapshot
    |   |-- SnapshotFileError         a file that breaks the format; carries the kind of defect
    |   |-- SnapshotDamagedError      bytes that are not those that were written: a digest does not match
    |   |-- SnapshotSignatureError    not signed, or not by the key that was given
    |   |-- SnapshotMismatchError     a sound snapshot of another module, model or shape
    |   |-- SnapshotWriteError        it could not be written; what was there before still is
    |   `-- StoreError                the store is out of reach, refuses, or has no such snapshot
    |-- NnError               a call of wasi-nn that fails; carries the number that its guest gets
    `-- GuestError            something about a guest
        |-- InvalidModuleError        not WebAssembly, or no memory, or an unknown import
        |-- TrapError                 the guest trapped; carries the Wasm backtrace
        |-- DeadlineError             the guest ran longer than it may
        |-- FuelError                 the guest used more fuel than it has
        `-- ExitError                 the guest called proc_exit with a code that is not 0

A message says what was asked, what was found and what to do. `code` is what a guest gets for the same error.
"""


class Error(Exception):
    """The root of every error that nocopy raises on purpose."""

    code = -1


class UsageError(Error, ValueError):
    """A wrong argument, option or file name."""

    code = -2


class MemoryLimitError(Error, MemoryError):
    """A reservation, a growth or a quota that cannot be met."""

    code = -3


class ClosedError(Error):
    """A memory, view, guest or device was used after it was closed."""

    code = -4


class StaleViewError(Error):
    """The memory has grown since this view was made; make a new one."""

    code = -5


class CopyRefusedError(Error, BufferError):
    """The request would need a copy, and copies were not allowed."""

    code = -6


class TapeError(Error, ValueError):
    """The validator refuses a record. `record` is its index, -1 for the tape as a whole."""

    code = -7

    def __init__(self, message: str, record: int = -1) -> None:
        super().__init__(message)
        self.record = record


class DeviceError(Error):
    """A device failed."""

    code = -8


class DeviceUnavailableError(DeviceError):
    """The device is not on this machine; `fix` is the command or step that would change that."""

    code = -9

    def __init__(self, name: str, reason: str, fix: str) -> None:
        super().__init__(f"device '{name}' is not available: {reason}. {fix}")
        self.name, self.reason, self.fix = name, reason, fix


class DeviceLostError(DeviceError):
    """The device failed for good; open it again. Guests and their memory are unharmed."""

    code = -10


class GuestError(Error):
    """Something about a guest."""

    code = -11


class InvalidModuleError(GuestError):
    """Not WebAssembly, no memory, or an import that nothing provides."""

    code = -12


class TrapError(GuestError):
    """The guest trapped. `trap` names the kind; `backtrace` is the Wasm backtrace as text."""

    code = -13

    def __init__(self, message: str, trap: str = "", backtrace: str = "") -> None:
        super().__init__(message)
        self.trap, self.backtrace = trap, backtrace


class DeadlineError(GuestError):
    """The guest ran longer than it may."""

    code = -14


class FuelError(GuestError):
    """The guest used more fuel than it has."""

    code = -15


class ExitError(GuestError):
    """The guest ended with an exit status that is not 0."""

    code = -16

    def __init__(self, status: int) -> None:
        super().__init__(f"the guest exited with status {status}")
        self.status = status


class ModelError(Error):
    """Something about a model."""

    code = -17


class ModelFileError(ModelError):
    """A model file breaks its format. `kind` names the defect as docs/gguf.md does; `path` is the file."""

    code = -18

    def __init__(self, path: str, kind: str, message: str) -> None:
        super().__init__(f"cannot read the model file '{path}': {message} [{kind}]")
        self.path, self.kind = path, kind


class UnsupportedModelError(ModelError):
    """The model is sound, but nothing here can play it."""

    code = -19


class MetadataError(ModelError):
    """A metadata key is missing or has another type than the model needs. `key` is its name."""

    code = -20

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class TokenizerError(ModelError):
    """A text, a token id or a vocabulary cannot be used."""

    code = -21


class TemplateError(ModelError):
    """A chat template is wrong, refuses the conversation, or exceeds its limits."""

    code = -22


class HubError(ModelError):
    """The hub cannot be reached, refuses, sends something else than it announced, or has no such model."""

    code = -23


class SnapshotError(Error):
    """Something about a snapshot."""

    code = -30


class SnapshotFileError(SnapshotError):
    """A snapshot breaks its format. `kind` names the defect as docs/snapshot.md does; `path` is the file."""

    code = -31

    def __init__(self, path: str, kind: str, message: str) -> None:
        super().__init__(f"cannot read the snapshot '{path}': {message} [{kind}]")
        self.path, self.kind = path, kind


class SnapshotDamagedError(SnapshotError):
    """A digest does not match: the bytes are not those that were written."""

    code = -32

    def __init__(self, path: str, part: str) -> None:
        super().__init__(
            f"the snapshot '{path}' is damaged: the digest of {part} does not match. Fetch it again"
        )
        self.path, self.part = path, part


class SnapshotSignatureError(SnapshotError):
    """The snapshot is not signed, or not by the key that was given."""

    code = -33


class SnapshotMismatchError(SnapshotError):
    """A sound snapshot of another module, model or shape than it is to be thawed with."""

    code = -34


class SnapshotWriteError(SnapshotError):
    """The snapshot could not be written. What was there before is untouched."""

    code = -35


class StoreError(SnapshotError):
    """The store cannot be reached, refuses, or has no such snapshot."""

    code = -36


class NnError(Error):
    """A call of wasi-nn fails. `errno` is the number that the guest gets for it.

    `needed` is how many bytes an output has that did not fit.
    """

    code = -40

    def __init__(self, errno: int, message: str, *, needed: int | None = None) -> None:
        super().__init__(message)
        self.errno, self.needed = errno, needed
