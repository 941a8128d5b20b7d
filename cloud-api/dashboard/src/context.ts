import { createContext, useCallback, useContext, useSyncExternalStore } from 'react';
import type { Auth } from './api/auth';
import type { Session } from './api/types';
import type { Clinic } from './clinic';
import { Zone } from './format';
import type { LiveStore } from './live/store';

export interface App {
  auth: Auth;
  session: Session;
  clinic: Clinic;
  zone: Zone;
}

export const AppContext = createContext<App | null>(null);

export function useApp(): App {
  const app = useContext(AppContext);
  if (!app) throw new Error('useApp outside of a session');
  return app;
}

/** A part of the store; the component renders again when `topic` is touched and `select`'s answer changed. */
export function useStore<T>(topic: string, select: (store: LiveStore) => T): T {
  const { store } = useApp().clinic;
  const subscribe = useCallback((listener: () => void) => store.subscribe(topic, listener), [store, topic]);
  return useSyncExternalStore(subscribe, () => select(store));
}
