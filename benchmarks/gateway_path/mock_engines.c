/* Engines that answer at once: one epoll process, many ports, fixed answers.
 *
 *   mock_engines FIRST_PORT NUM_PORTS
 *
 * Completions get a JSON answer of 256 bytes, or nine events if the request says "stream"; /metrics
 * gets a page with vLLM's names; anything else, as routers probe it, a small JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_REQUEST (1 << 20)

struct connection { char *data; size_t size, room; int is_listener; };
static struct connection connections[MAX_FDS];
static char whole[2048], stream[8192], page[4096], object[512], models[1024];

static void fill_answers(void) {
  char body[512];
  char text[180];
  memset(text, 'a', sizeof text - 1); text[sizeof text - 1] = 0;
  int n = snprintf(body, sizeof body, "{\"id\":\"mock\",\"object\":\"chat.completion\",\"created\":1,"
    "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%.60s\"},"
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":512,\"completion_tokens\":16,"
    "\"total_tokens\":528}}", text);
  snprintf(whole, sizeof whole, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    "content-length: %d\r\n\r\n%s", n, body);
  char *at = stream;
  at += sprintf(at, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    "transfer-encoding: chunked\r\n\r\n");
  for (int i = 0; i < 9; i++) {
    char event[256];
    int m = i < 8 ? snprintf(event, sizeof event, "data: {\"id\":\"mock\",\"object\":"
      "\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":"
      "{\"content\":\"word\"},\"finish_reason\":null}]}\n\n") : snprintf(event, sizeof event, "data: [DONE]\n\n");
    at += sprintf(at, "%x\r\n%s\r\n", m, event);
  }
  sprintf(at, "0\r\n\r\n");
  char metrics[2048];
  n = snprintf(metrics, sizeof metrics,
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"mock\"} 1\n"
    "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0\n"
    "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock\"} 0.1\n"
    "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"8192\"} 1\n");
  snprintf(page, sizeof page, "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n"
    "content-length: %d\r\n\r\n%s", n, metrics);
  const char *small = "{\"status\":\"ok\",\"load\":0,\"loads\":[],\"max_total_num_tokens\":131072,"
    "\"model_path\":\"mock\",\"tokens\":[1,2,3]}";
  snprintf(object, sizeof object, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    "content-length: %zu\r\n\r\n%s", strlen(small), small);
  const char *list = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1,\"owned_by\":\"mock\"}]}";
  snprintf(models, sizeof models, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    "content-length: %zu\r\n\r\n%s", strlen(list), list);
}

static const char *answer_to(const char *request, size_t head, size_t body) {
  if (!strncmp(request, "POST /v1/", 9) && strncmp(request, "POST /v1/loads", 14)) {
    const char *end = memmem(request + head, body, "\"stream\": true", 14);
    if (!end) end = memmem(request + head, body, "\"stream\":true", 13);
    return end ? stream : whole;
  }
  if (!strncmp(request, "GET /metrics", 12)) return page;
  if (!strncmp(request, "GET /v1/models", 14)) return models;
  return object;
}

static void take(int fd, struct connection *c) {
  for (;;) {
    char *end = memmem(c->data, c->size, "\r\n\r\n", 4);
    if (!end) return;
    size_t head = end + 4 - c->data, body = 0;
    for (char *line = c->data; line < end; ) {
      if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, NULL, 10);
      line = memmem(line, end - line + 2, "\r\n", 2);
      if (!line) break;
      line += 2;
    }
    if (c->size < head + body) return;
    const char *answer = answer_to(c->data, head, body);
    if (write(fd, answer, strlen(answer)) < 0) return;
    memmove(c->data, c->data + head + body, c->size - head - body);
    c->size -= head + body;
  }
}

int main(int argc, char **argv) {
  int first = atoi(argv[1]), number = atoi(argv[2]), loop = epoll_create1(0), one = 1;
  fill_answers();
  for (int i = 0; i < number; i++) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(first + i),
      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) { perror("listen"); return 1; }
    connections[fd].is_listener = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
  }
  puts("ready"); fflush(stdout);
  struct epoll_event events[256];
  for (;;) {
    int count = epoll_wait(loop, events, 256, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      struct connection *c = &connections[fd];
      if (c->is_listener) {
        int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
        if (client < 0 || client >= MAX_FDS) continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[client] = (struct connection){.data = malloc(4096), .room = 4096};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = client};
        epoll_ctl(loop, EPOLL_CTL_ADD, client, &event);
        continue;
      }
      for (;;) {
        if (c->size + 1 >= c->room) {
          if (c->room >= MAX_REQUEST) break;
          c->data = realloc(c->data, c->room *= 2);
        }
        ssize_t got = read(fd, c->data + c->size, c->room - c->size - 1);
        if (got > 0) { c->size += got; continue; }
        if (got == 0) { close(fd); free(c->data); c->data = NULL; c->size = 0; }
        break;
      }
      if (c->data && c->size) { c->data[c->size] = 0; take(fd, c); }
    }
  }
}
