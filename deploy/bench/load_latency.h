/* Latencies: log-linear buckets, 128 to the power of two, so at most 0.8 % off. */
#pragma once

#include <stdint.h>
#include <stdio.h>

enum { SUB = 7, BUCKETS = (64 - SUB) << SUB };

struct histogram {
  uint64_t count, sum, max, bucket[BUCKETS];
};

static int bucket_of(uint64_t ns) {
  if (ns < (1u << SUB)) return (int)ns;
  int shift = 63 - __builtin_clzll(ns) - SUB;
  return ((shift + 1) << SUB) + (int)((ns >> shift) & ((1u << SUB) - 1));
}

static double middle_of(int bucket) {
  if (bucket < (1 << SUB)) return bucket;
  int shift = (bucket >> SUB) - 1;
  uint64_t low = ((uint64_t)(bucket & ((1 << SUB) - 1)) + (1u << SUB)) << shift;
  return (double)low + (double)((uint64_t)1 << shift) / 2;
}

static void record(struct histogram *h, uint64_t ns) {
  h->count++, h->sum += ns, h->bucket[bucket_of(ns)]++;
  if (ns > h->max) h->max = ns;
}

static void merge(struct histogram *into, const struct histogram *from) {
  into->count += from->count, into->sum += from->sum;
  if (from->max > into->max) into->max = from->max;
  for (int i = 0; i < BUCKETS; i++) into->bucket[i] += from->bucket[i];
}

static double quantile_us(const struct histogram *h, double q) {
  uint64_t rank = (uint64_t)(q * (double)h->count), seen = 0;
  for (int i = 0; i < BUCKETS; i++)
    if ((seen += h->bucket[i]) > rank) return middle_of(i) / 1000;
  return (double)h->max / 1000;
}

static void print_latency(const struct histogram *h) {
  printf("\"latency_us\": {\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f, \"mean\": %.2f}",
         quantile_us(h, 0.50), quantile_us(h, 0.90), quantile_us(h, 0.99), quantile_us(h, 0.999), (double)h->max / 1000,
         h->count ? (double)h->sum / (double)h->count / 1000 : 0.0);
}
