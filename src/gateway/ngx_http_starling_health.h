/*
 * What engines say of themselves, and the event feed's sources: between
 * ngx_http_starling_health.c, which asks, and ngx_http_starling_says.c, which
 * reads and keeps.
 */

#ifndef _NGX_HTTP_STARLING_HEALTH_H_INCLUDED_
#define _NGX_HTTP_STARLING_HEALTH_H_INCLUDED_


#include "ngx_http_starling.h"


typedef struct ngx_http_starling_health_s  ngx_http_starling_health_t;


/* /starling/engine */
typedef struct {
    char                          engine_id[ST_NAME_MAX];
    char                          kv_host[ST_NAME_MAX];
    char                          topic[ST_NAME_MAX];
    int32_t                       running;
    int32_t                       waiting;
    int32_t                       block_size;
    int32_t                       max_model_len;
    int64_t                       kv_tokens;
    float                         kv_usage;
    uint32_t                      kv_port;       /* 0: none, of each port */
    uint32_t                      events_port;
    uint32_t                      replay_port;
    unsigned                      draining:1;
} ngx_http_starling_engine_says_t;

st_status ngx_http_starling_read_engine(const char *body, size_t len,
    ngx_http_starling_engine_says_t *says, st_error *err) ST_NODISCARD;


/* /metrics of vLLM and SGLang; -1: not among them */
typedef struct {
    int32_t                       running;
    int32_t                       waiting;
    float                         kv_usage;      /* of the fullest rank */
    int64_t                       kv_tokens;
    int32_t                       block_size;
} ngx_http_starling_gauges_t;

void ngx_http_starling_read_gauges(st_engine_kind kind, const char *text,
    size_t len, ngx_http_starling_gauges_t *g);


/* the leader's writes of what ngx_http_starling_get_info() reads */
void ngx_http_starling_set_info(st_engine_slot *slot, const char *engine_id,
    const char *kv_host);


/*
 * followed holds what the feed was told last, so that it is told changes
 * only; "" : nothing
 */
void ngx_http_starling_follow_engine(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot,
    const ngx_http_starling_engine_says_t *says, char *engine_id,
    char *followed, size_t size);
void ngx_http_starling_follow_configured(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot, char *followed,
    size_t size);
void ngx_http_starling_follow_nothing(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot);


#endif /* _NGX_HTTP_STARLING_HEALTH_H_INCLUDED_ */
