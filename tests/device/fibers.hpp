// Fibers: the threads of a GPU's group as stacks of one thread of the CPU, switched by hand.
//
// A fiber begins with setcontext. From then on it is switched to and from with _longjmp, which unlike
// swapcontext makes no system call; it runs its function again and again, so that it need not begin again.
#pragma once

#include <setjmp.h>
#include <stddef.h>
#include <ucontext.h>

#include <memory>

namespace fibers {

static const size_t STACK = 128 << 10;

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK]};
    jmp_buf place;
    bool begun = false, ended = false;
};

static jmp_buf scheduler;
static Fiber* current;
static void (*function)();

// Leaves the current fiber until it is stepped again.
static void yield() {
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

static void body() {
    for (;;) {
        function();
        current->ended = true;
        yield();
    }
}

// Runs a fiber until it yields, or `run` has ended.
static void step(Fiber& fiber, void (*run)()) {
    current = &fiber;
    function = run;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    ucontext_t beginning;
    getcontext(&beginning);
    beginning.uc_stack.ss_sp = fiber.stack.get();
    beginning.uc_stack.ss_size = STACK;
    beginning.uc_link = nullptr;
    makecontext(&beginning, body, 0);
    setcontext(&beginning);
}

}  // namespace fibers
