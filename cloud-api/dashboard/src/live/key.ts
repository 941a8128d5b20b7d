/** The identity of a sample as the live connection writes it: `epochhex:seq:idx`. */
export interface SampleKey {
  epoch: string;
  seq: number;
}

export function parseKey(key: string): SampleKey | null {
  const [epoch, seq] = key.split(':');
  if (!epoch || !seq || !/^[0-9a-f]+$/i.test(epoch)) return null;
  const n = Number(seq);
  return Number.isInteger(n) && n >= 0 ? { epoch: epoch.toLowerCase().padStart(16, '0'), seq: n } : null;
}

/** How many epochs of a device are remembered: a reboot starts one, and only recent ones can still be on screen. */
const EPOCHS_KEPT = 8;

/**
 * What the server has said is stored: by device and epoch, the highest seq. A `stored` message may overtake the
 * live value it is about (they come by different ways), so it is remembered and asked again when the value comes.
 */
export class StoredMarks {
  private readonly devices = new Map<string, Map<string, number>>();

  mark(device: string, epoch: string, seq: number): void {
    let epochs = this.devices.get(device);
    if (!epochs) {
      epochs = new Map();
      this.devices.set(device, epochs);
    }
    const id = epoch.toLowerCase().padStart(16, '0');
    const known = epochs.get(id);
    // Delete first: insertion order is age, so the epoch marked longest ago is the one dropped.
    epochs.delete(id);
    epochs.set(id, Math.max(seq, known ?? -1));
    if (epochs.size > EPOCHS_KEPT) {
      const oldest = epochs.keys().next().value;
      if (oldest !== undefined) epochs.delete(oldest);
    }
  }

  covers(device: string, key: SampleKey): boolean {
    const seq = this.devices.get(device)?.get(key.epoch);
    return seq !== undefined && key.seq <= seq;
  }
}
