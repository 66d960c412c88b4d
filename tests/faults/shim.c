/* Preloaded into a server under test: fails the n-th call of one function, and times posix_spawn.
 *
 * FAULT=FUNCTION:N:once|ever:ERRNO:incumbent|successor
 * FAULT_ARMED=PATH   calls count, and fail, only while this file exists
 * FAULT_LOG=PATH     one line for each failure; with `once`, its existence says that the failure has been
 * PEER=PID           whom a successor finds at the other end of its channel, if not who is there
 * PASSED_LOG=PATH    one line for each message with descriptors that was sent
 * SPAWN_CLOCK=PATH   one line for each posix_spawn: how many nanoseconds it took
 *
 * A process is a successor if it was started with HANDOVER_CHANNEL, for the rest of its life. Its calls count from the
 * moment at which it asks who is at the other end of its channel, the first that the handover does, so that those of
 * the runtime's start stay out. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char function[32], mode[8], role[16];
static const char *armed_path, *log_path, *clock_path, *passed_path;
static long nth;
static int error;
static int is_mine;
static atomic_int has_begun;
static atomic_long calls;

#define LINES_MAX 1000

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
  int is_successor = getenv("HANDOVER_CHANNEL") != NULL;
  const char *fault = getenv("FAULT");
  armed_path = getenv("FAULT_ARMED");
  log_path = getenv("FAULT_LOG");
  clock_path = getenv("SPAWN_CLOCK");
  passed_path = getenv("PASSED_LOG");
  if (fault == NULL || armed_path == NULL || log_path == NULL) return;
  if (sscanf(fault, "%31[^:]:%ld:%7[^:]:%d:%15s", function, &nth, mode, &error, role) != 5) abort();
  is_mine = strcmp(role, is_successor ? "successor" : "incumbent") == 0;
  has_begun = !is_successor;
}

static void append(const char *path, int flags, const char *what, long number) {
  char line[128];
  int length = snprintf(line, sizeof line, "%s %ld\n", what, number);
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0600);
  if (file < 0) return;
  if (write(file, line, length) != length) abort();
  close(file);
}

static int is_due(void) {
  if (!has_begun || access(armed_path, F_OK) != 0) return 0;
  long call = atomic_fetch_add(&calls, 1) + 1;
  if (strcmp(mode, "ever") == 0) {
    if (call < nth) return 0;
    if (call < nth + LINES_MAX) append(log_path, 0, function, call);
    return 1;
  }
  if (call != nth || access(log_path, F_OK) == 0) return 0;
  append(log_path, O_EXCL, function, call);
  return 1;
}

static int fails(const char *name) {
  if (!is_mine || strcmp(name, function) != 0) return 0;
  int saved = errno;
  int due = is_due();
  errno = due ? error : saved;
  return due;
}

/* A client's connection: what becomes of those is the application's affair. */
static int is_connection(int socket) {
  struct sockaddr_storage peer;
  socklen_t length = sizeof peer;
  int saved = errno;
  int found = getpeername(socket, (struct sockaddr *)&peer, &length) == 0 && peer.ss_family == AF_INET;
  errno = saved;
  return found;
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
  struct timespec from, to;
  if (fails("posix_spawn")) return errno;
  clock_gettime(CLOCK_MONOTONIC, &from);
  int result = REAL(posix_spawn)(pid, path, actions, attributes, argv, envp);
  clock_gettime(CLOCK_MONOTONIC, &to);
  if (clock_path != NULL)
    append(clock_path, 0, "posix_spawn", (to.tv_sec - from.tv_sec) * 1000000000L + (to.tv_nsec - from.tv_nsec));
  return result;
}

int socketpair(int domain, int type, int protocol, int ends[2]) {
  return fails("socketpair") ? -1 : REAL(socketpair)(domain, type, protocol, ends);
}

int pipe2(int ends[2], int flags) { return fails("pipe2") ? -1 : REAL(pipe2)(ends, flags); }

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
  if (fails("sendmsg")) return -1;
  ssize_t sent = REAL(sendmsg)(socket, message, flags);
  if (passed_path != NULL && sent >= 0 && message->msg_controllen > 0) append(passed_path, 0, "sendmsg", sent);
  return sent;
}

ssize_t recvmsg(int socket, struct msghdr *message, int flags) {
  return fails("recvmsg") ? -1 : REAL(recvmsg)(socket, message, flags);
}

int accept4(int socket, struct sockaddr *address, socklen_t *length, int flags) {
  return fails("accept4") ? -1 : REAL(accept4)(socket, address, length, flags);
}

int epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event) {
  if (operation == EPOLL_CTL_ADD && !is_connection(descriptor) && fails("epoll_ctl")) return -1;
  return REAL(epoll_ctl)(epoll, operation, descriptor, event);
}

int getsockopt(int socket, int level, int name, void *value, socklen_t *length) {
  int result = REAL(getsockopt)(socket, level, name, value, length);
  if (level != SOL_SOCKET || name != SO_PEERCRED) return result;
  has_begun = 1;
  const char *peer = getenv("PEER");
  if (peer != NULL && result == 0) ((struct ucred *)value)->pid = atoi(peer);
  return result;
}

int fcntl(int descriptor, int command, ...) {
  va_list rest;
  va_start(rest, command);
  long argument = va_arg(rest, long);
  va_end(rest);
  if (command == F_DUPFD_CLOEXEC && fails("dup")) return -1;
  return ((int (*)(int, int, ...))real("fcntl"))(descriptor, command, argument);
}

int memfd_create(const char *name, unsigned int flags) {
  return fails("memfd_create") ? -1 : REAL(memfd_create)(name, flags);
}

long syscall(long number, ...) {
  static long (*next)(long, ...);
  va_list rest;
  va_start(rest, number);
  long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
  long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_pidfd_open && fails("pidfd_open")) return -1;
  if (number == SYS_pidfd_getfd && fails("pidfd_getfd")) return -1;
  if (next == NULL) next = (long (*)(long, ...))real("syscall");
  return next(number, a, b, c, d, e, f);
}
