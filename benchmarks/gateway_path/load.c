/* A load on one port: as fast as it goes, or at a rate.
 *
 *   load PORT REQUESTS_FILE closed CONNECTIONS SECONDS WARM_UP_S
 *   load PORT REQUESTS_FILE open RATE SECONDS WARM_UP_S
 *
 * The file holds requests, each after its length as four bytes. An open load has Poisson arrivals;
 * latency counts from the moment that a request was due. One JSON object is printed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_ANSWER (1 << 20)
struct connection { char *data; size_t size; double due; int is_busy; size_t sent; int request; };
static struct connection connections[MAX_FDS];
static char **requests; static uint32_t *sizes; static int num_requests, next_request;
static int idle[MAX_FDS], num_idle, loop, port;
static double *latencies; static long num_latencies, num_errors, num_done, max_latencies;
static double counted_from, closed_until;
static int is_open;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }

static int opened(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(fd, (struct sockaddr *)&at, sizeof at)) { close(fd); return -1; }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
  if (!connections[fd].data) connections[fd].data = malloc(MAX_ANSWER);
  connections[fd].size = 0; connections[fd].is_busy = 0;
  return fd;
}

static void sent(int fd, double due) {
  struct connection *c = &connections[fd];
  int r = next_request; next_request = (next_request + 1) % num_requests;
  c->due = due; c->is_busy = 1; c->size = 0; c->request = r; c->sent = 0;
  while (c->sent < sizes[r]) {
    ssize_t n = write(fd, requests[r] + c->sent, sizes[r] - c->sent);
    if (n <= 0) break;
    c->sent += n;
  }
}

static int is_whole(struct connection *c) {
  c->data[c->size] = 0;
  char *end = memmem(c->data, c->size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = end + 4 - c->data;
  for (char *line = c->data; line && line < end; ) {
    if (!strncasecmp(line, "content-length:", 15)) return c->size >= head + strtoul(line + 15, NULL, 10);
    line = memmem(line, end - line + 2, "\r\n", 2);
    if (line) line += 2;
  }
  return c->size >= 5 && !memcmp(c->data + c->size - 5, "0\r\n\r\n", 5);
}

static int ascending(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }
static double quantile(double q) { return num_latencies ? 1e3 * latencies[(long)(q * (num_latencies - 1))] : -1; }

static void answered(int fd, double at) {
  struct connection *c = &connections[fd];
  int is_good = c->size > 12 && !memcmp(c->data + 9, "200", 3);
  c->is_busy = 0;
  if (c->due >= counted_from) {
    if (is_good) { num_done++; if (num_latencies < max_latencies) latencies[num_latencies++] = at - c->due; }
    else num_errors++;
  }
}

int main(int argc, char **argv) {
  port = atoi(argv[1]); is_open = !strcmp(argv[3], "open");
  double amount = atof(argv[4]), seconds = atof(argv[5]), warm_up = atof(argv[6]);
  FILE *file = fopen(argv[2], "rb"); struct stat about; fstat(fileno(file), &about);
  char *all = malloc(about.st_size); if (fread(all, 1, about.st_size, file) != (size_t)about.st_size) return 1;
  requests = malloc(sizeof *requests * (about.st_size / 64 + 1)); sizes = malloc(sizeof *sizes * (about.st_size / 64 + 1));
  for (long at = 0; at < about.st_size; num_requests++) {
    memcpy(&sizes[num_requests], all + at, 4); requests[num_requests] = all + at + 4; at += 4 + sizes[num_requests];
  }
  loop = epoll_create1(0); max_latencies = 4000000; latencies = malloc(sizeof *latencies * max_latencies);
  double start = now(), due = start; counted_from = start + warm_up; closed_until = counted_from + seconds;
  srand48(7);
  if (!is_open) for (int i = 0; i < (int)amount; i++) { int fd = opened(); if (fd >= 0) sent(fd, now()); }
  struct epoll_event events[256]; long outstanding = 0;
  for (;;) {
    double at = now();
    if (is_open) {
      while (due <= at && due < closed_until) {
        int fd = num_idle ? idle[--num_idle] : opened();
        if (fd < 0) num_errors++; else { sent(fd, due); outstanding++; }
        due += -log(1.0 - drand48()) / amount;
      }
      if (due >= closed_until && (!outstanding || at > closed_until + 5.0)) break;
    } else if (at >= closed_until) break;
    int wait = 100;
    if (is_open && due < closed_until) { wait = (int)(1e3 * (due - now())); if (wait < 0) wait = 0; }
    struct timespec exact = {0, 0};
    if (is_open && due < closed_until) { double left = due - now(); if (left < 0) left = 0; exact.tv_nsec = (long)(1e9 * (left < 0.1 ? left : 0.1)); }
    int count = is_open && due < closed_until ? epoll_pwait2(loop, events, 256, &exact, NULL) : epoll_wait(loop, events, 256, wait);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd; struct connection *c = &connections[fd];
      ssize_t got = read(fd, c->data + c->size, MAX_ANSWER - c->size - 1);
      if (got <= 0) {
        if (c->is_busy) { c->is_busy = 0; if (c->due >= counted_from) num_errors++; outstanding--; }
        for (int k = 0; k < num_idle; k++) if (idle[k] == fd) { idle[k] = idle[--num_idle]; break; }
        close(fd);
        if (!is_open) { int other = opened(); if (other >= 0) sent(other, now()); }
        continue;
      }
      c->size += got;
      if (!c->is_busy || !is_whole(c)) continue;
      at = now(); answered(fd, at); outstanding--;
      if (is_open) idle[num_idle++] = fd; else sent(fd, at);
    }
  }
  qsort(latencies, num_latencies, sizeof *latencies, ascending);
  printf("{\"num_done\": %ld, \"num_errors\": %ld, \"unanswered\": %ld, \"rps\": %.1f, \"p50_ms\": %.4f, "
    "\"p99_ms\": %.4f, \"max_ms\": %.3f}\n", num_done, num_errors, is_open ? outstanding : 0,
    num_done / (closed_until - counted_from), quantile(0.5), quantile(0.99), quantile(1.0));
  return 0;
}
