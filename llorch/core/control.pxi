"""Threads, interrupts, instruction sets, and what the environment says of them."""

cdef extern from "llorch.h" nogil:
    const char *ll_isa_name(int)
    int ll_isa_supported(int)
    int ll_isa_active()
    int ll_isa_select(int)
    const char *ll_compiler()
    int llorch_get_num_threads()
    void llorch_set_num_threads(int)
    int ll_default_num_threads()

cdef extern from "fpenv.h" nogil:
    ctypedef struct ll_fpenv:
        pass
    ll_fpenv ll_fpenv_enter()
    void ll_fpenv_leave(ll_fpenv)


def _in_fpenv(function, *arguments):
    """function(*arguments) in the floating-point environment of the contract: for what is specified but not C."""
    cdef ll_fpenv saved = ll_fpenv_enter()
    try:
        return function(*arguments)
    finally:
        ll_fpenv_leave(saved)


# ---- interrupts -----------------------------------------------------------------------------------

cdef extern from "llorch.h" nogil:
    void ll_set_interrupt_check(int (*)() noexcept nogil)
    void ll_interrupts_on()
    int ll_interrupted()

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    void *PyErr_Occurred() noexcept
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef unsigned long _main_thread = 0


cdef int _signalled() noexcept nogil:
    """Runs the handlers of signals that have come; what one raises stays set. Only the main thread may: others, which may
    have no thread state, don't even look."""
    cdef int raised
    if PyThread_get_thread_ident() != _main_thread:
        return 0
    with gil:
        raised = PyErr_CheckSignals()
    return raised


cdef int _check_interrupted() except -1:
    """After a call that could be interrupted: raises what a signal's handler raised in its middle."""
    if ll_interrupted():
        if PyErr_Occurred() == NULL:
            raise KeyboardInterrupt
        return -1
    return 0


def _know_main_thread():
    global _main_thread
    import threading

    _main_thread = threading.main_thread().ident


def _without_interrupts():
    """For a test: what happens where nobody asks."""
    ll_set_interrupt_check(NULL)


_know_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_know_main_thread)  # which is the thread that forked
ll_set_interrupt_check(_signalled)


# ---- threads --------------------------------------------------------------------------------------

def set_num_threads(n):
    """Let llorch use up to n threads (an int >= 1; above 256 it is 256). Changes no bit of any result."""
    value = _integer(n, "n")
    if value < 1:
        raise ValueError(f"n must be at least 1, got {value}")
    llorch_set_num_threads(min(value, LL_MAX_THREADS))


def get_num_threads():
    """How many threads a call may use; first LLORCH_NUM_THREADS, or what affinity and the cgroup's quota allow."""
    return llorch_get_num_threads()


def isa():
    """The instruction set whose kernels run: "avx512_vnni", "avx512", "avx2", "neon" or "generic"."""
    return ll_isa_name(ll_isa_active()).decode()


def _compiled_isas():
    names = []
    while ll_isa_name(len(names)) != NULL:
        names.append(ll_isa_name(len(names)).decode())
    return tuple(names)


def available_isas():
    """The instruction sets compiled in that this machine can run, best first. All give the same bits."""
    return tuple([name for i, name in enumerate(_compiled_isas()) if ll_isa_supported(i)])


def _select_isa(name):
    compiled = _compiled_isas()
    if name not in compiled:
        raise ValueError(f"instruction set {name!r} is unknown here, this build has {', '.join(compiled)}")
    if ll_isa_select(compiled.index(name)):
        raise RuntimeError(f"instruction set {name!r} can't run on this machine, it has {', '.join(available_isas())}")


def _compiler():
    return ll_compiler().decode()


def _default_num_threads():
    return ll_default_num_threads()


def _from_environment():
    """LLORCH_ISA and LLORCH_NUM_THREADS; a value that can't be followed is an error, never ignored."""
    name = os.environ.get("LLORCH_ISA", "")
    if name:
        try:
            _select_isa(name)
        except ValueError as error:
            raise ValueError(f"LLORCH_ISA: {error}") from None
        except RuntimeError as error:
            raise RuntimeError(f"LLORCH_ISA: {error}") from None
    threads = os.environ.get("LLORCH_NUM_THREADS", "")
    if threads:
        if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
            raise ValueError(f"LLORCH_NUM_THREADS must be an integer of at least 1, got {threads!r}")
        set_num_threads(int(threads))


_from_environment()
