// A team of threads inside one call: `parallel(parts, f)` runs f(0) .. f(parts - 1), each once, in any order, and comes
// back when all are done. Parts must not depend on who runs them, so results are the same for any team.
//
// A thread joins a team by `Team team(n)`, for its own calls alone; without one, parts run one after another. There is
// one pool a process, made at first use. Who finds it taken by another thread does its parts alone. Idle workers spin
// for a moment, give way to others for another, and then sleep, so a busy machine loses nothing to them.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include <unistd.h>

namespace threads {

using Part = void (*)(void*, int);

class Pool {
  public:
    explicit Pool(int workers) : workers(workers), owner(getpid()) {
        for (int i = 0; i < workers; i++) std::thread([this] { work(); }).detach();
    }
    const int workers;
    const pid_t owner;  // a forked child has the pool and none of its threads

    // False where another thread uses the pool.
    bool run(int parts, Part f, void* data) {
        std::unique_lock<std::mutex> mine(taken, std::try_to_lock);
        if (!mine) return false;
        function = f, argument = data, count = parts, done = 0;
        {
            std::lock_guard<std::mutex> lock(sleeping);
            next = ((next.load() >> 32) + 1) << 32 | static_cast<uint32_t>(parts);
        }
        if (sleepers.load()) wake.notify_all();
        take();
        for (int turns = 0; done.load() < parts; turns++) pause(turns);
        return true;
    }

  private:
    std::mutex taken, sleeping;
    std::condition_variable wake;
    std::atomic<uint64_t> next{0};  // the round, and how many of its parts are left to take
    std::atomic<int> count{0}, done{0}, sleepers{0};
    std::atomic<Part> function{nullptr};
    std::atomic<void*> argument{nullptr};

    // Parts of the present round while there are any. What is read of it holds if the part is then really taken, for
    // a round with a part left is not over. Whether one is left must be told by `next` itself: a count beside it may
    // be the next round's already (which ran parts twice, and ended rounds early, once in some 70,000 steps).
    void take() {
        for (uint64_t now = next.load();;) {
            const int left = static_cast<int>(now & 0xffffffff);
            if (left == 0) return;
            const Part f = function.load();
            void* data = argument.load();
            const int part = count.load() - left;
            if (!next.compare_exchange_weak(now, now - 1)) continue;
            f(data, part);
            done.fetch_add(1);
            now = next.load();
        }
    }

    static void pause(int turns) {
        if (turns < 2000) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            std::this_thread::yield();
        }
    }

    void work() {
        for (;;) {
            const uint64_t seen = next.load() >> 32;
            take();
            const auto begin = std::chrono::steady_clock::now();
            for (int turns = 0; next.load() >> 32 == seen; turns++) {
                pause(turns);
                if (turns % 1024 == 0 && std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(2)) {
                    std::unique_lock<std::mutex> lock(sleeping);
                    sleepers++;
                    wake.wait(lock, [&] { return next.load() >> 32 != seen; });
                    sleepers--;
                }
            }
        }
    }
};

inline Pool* pool(int workers) {
    static std::mutex making;
    static Pool* made = nullptr;  // never destroyed: its threads may outlive any order of destruction
    std::lock_guard<std::mutex> lock(making);
    if (!made || made->owner != getpid() || made->workers < workers) made = new Pool(workers);
    return made;
}

inline thread_local int members = 1;

struct Team {
    const int before = members;
    explicit Team(int n) { members = std::max(1, n); }
    ~Team() { members = before; }
};

template <class F>
void parallel(int parts, F f) {
    const auto part = [](void* data, int i) { (*static_cast<F*>(data))(i); };
    if (members > 1 && parts > 1 && pool(members - 1)->run(parts, part, &f)) return;
    for (int i = 0; i < parts; i++) f(i);
}

// [0, n) in pieces of at least `least`, a few a member.
struct Pieces {
    const int n, count;
    Pieces(int n, int least) : n(n), count(std::max(1, std::min(n / std::max(1, least), members == 1 ? 1 : 4 * members))) {}
    int from(int i) const { return static_cast<int>(int64_t(n) * i / count); }
};

// f(from, to) for each of them.
template <class F>
void ranges(int n, int least, F f) {
    const Pieces pieces(n, least);
    parallel(pieces.count, [&](int i) { f(pieces.from(i), pieces.from(i + 1)); });
}

}  // namespace threads
