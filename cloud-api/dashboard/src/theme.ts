/** Light, dark, or as the system says; the choice is this browser's. */
import { useSyncExternalStore } from 'react';

export type Theme = 'system' | 'light' | 'dark';
const STORAGE = 'kinara-theme';
const listeners = new Set<() => void>();
const dark = matchMedia('(prefers-color-scheme: dark)');

let theme: Theme = read();
apply();
dark.addEventListener('change', () => {
  apply();
  tell();
});

function read(): Theme {
  try {
    const stored = localStorage.getItem(STORAGE);
    return stored === 'light' || stored === 'dark' ? stored : 'system';
  } catch {
    // Storage may be forbidden in this browser; then the choice lasts for this page.
    return 'system';
  }
}

function apply(): void {
  document.documentElement.dataset['theme'] = isDark() ? 'dark' : 'light';
}

function tell(): void {
  for (const l of [...listeners]) l();
}

function isDark(): boolean {
  return theme === 'dark' || (theme === 'system' && dark.matches);
}

export function setTheme(next: Theme): void {
  theme = next;
  try {
    localStorage.setItem(STORAGE, next);
  } catch {
    // See `read`.
  }
  apply();
  tell();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function useTheme(): Theme {
  return useSyncExternalStore(subscribe, () => theme);
}

export function useIsDark(): boolean {
  return useSyncExternalStore(subscribe, isDark);
}
