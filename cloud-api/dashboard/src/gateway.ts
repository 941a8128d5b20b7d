/** What a gateway's buffer means to a person. */
import type { Gateway } from './api/types';

export type GatewayState = 'delivering' | 'draining' | 'held' | 'buffering' | 'silent' | 'unknown';

/** Online, batches are sealed after 5 s and acknowledged in moments; older than this is not the ordinary flow. */
const ORDINARY_AGE_MS = 20_000;
/** A gateway reports every 15 s; after so long without a report its last word is no longer taken for true. */
const SILENT_MS = 90_000;

/** Buffer sizes over time, newest last. */
export interface BufferSample {
  t: number;
  frames: number;
  batches: number;
  bytes: number;
}

export function gatewayState(gateway: Gateway, history: readonly BufferSample[], now: number): GatewayState {
  if (!gateway.buffer) return gateway.online ? 'delivering' : 'unknown';
  if (!gateway.online) return 'buffering';
  if (gateway.lastSeenAt !== null && now - gateway.lastSeenAt > SILENT_MS) return 'silent';
  const oldest = gateway.buffer.oldestAt;
  const reported = reportedAt(gateway, history, now);
  const empty = gateway.buffer.frames === 0 && gateway.buffer.batches === 0;
  if (oldest === null || empty || reported - oldest <= ORDINARY_AGE_MS) return 'delivering';
  return falling(history, now) ? 'draining' : 'held';
}

/** When the gateway said what it holds: since then the oldest may have gone. */
export function reportedAt(gateway: Gateway, history: readonly BufferSample[], now: number): number {
  return Math.min(gateway.lastSeenAt ?? now, history[history.length - 1]?.t ?? now);
}

/** Two or three reports' time: a gateway reports its buffer every 15 s. */
const TREND_MS = 45_000;

/** Whether the buffer is smaller than it was then (or there is nothing to compare with). */
function falling(history: readonly BufferSample[], now: number): boolean {
  const last = history[history.length - 1];
  const earlier = history.find((s) => now - s.t <= TREND_MS);
  if (!last || !earlier || last === earlier) return true;
  // Frames are packed into batches before they are sent: the first fall, then the second.
  return last.frames < earlier.frames || (last.frames === earlier.frames && last.batches < earlier.batches);
}
